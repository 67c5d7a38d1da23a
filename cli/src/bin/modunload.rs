//! `modunload`: see `modunload --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    modload_cli::modunload(std::env::args_os())
}
