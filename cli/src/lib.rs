//! The commands.
//!
//! - `modload` loads modules into a host that lasts as long as the command, calls them, and unloads them.
//! - `modhost inspect` shows what a module file holds, without running anything of it.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage.

#![deny(unsafe_code)]

mod args;
mod demo;
mod failure;
mod inspect;
mod output;
mod run;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::args::{Command, Format, HostCommand};
use crate::failure::Failure;
use crate::output::Output;

/// The command `modload`, with its own name as the first argument.
pub fn modload(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(arguments) {
        Err(usage) => usage.exit(),
        Ok(Command::Demo { format }) => end(format, demo::run(&mut Output::new(format))),
        Ok(Command::Load(load)) => end(load.format, run::load(&load, &mut Output::new(load.format))),
    }
}

/// The command `modhost`, with its own name as the first argument.
pub fn modhost(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse_host(arguments) {
        Err(usage) => usage.exit(),
        Ok(HostCommand::Inspect(inspect)) => {
            end(inspect.format, inspect::run(&inspect, &mut Output::new(inspect.format)))
        }
    }
}

fn end(format: Format, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(format);
            ExitCode::FAILURE
        }
    }
}
