//! `modhost`: see `modhost --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    modload_cli::modhost(std::env::args_os())
}
