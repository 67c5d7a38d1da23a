//! `modload`: see `modload --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    modload_cli::modload(std::env::args_os())
}
