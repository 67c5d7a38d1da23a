//! `modload`: loads modules into a host that lasts as long as the command, calls them, and unloads them.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage.

#![deny(unsafe_code)]

mod args;
mod demo;
mod failure;
mod output;
mod run;

use std::process::ExitCode;

use crate::args::Command;
use crate::output::Output;

fn main() -> ExitCode {
    let command = match args::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(usage) => usage.exit(),
    };
    let (format, result) = match command {
        Command::Demo { format } => (format, demo::run(&mut Output::new(format))),
        Command::Load(load) => (load.format, run::load(&load, &mut Output::new(load.format))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(format);
            ExitCode::FAILURE
        }
    }
}
