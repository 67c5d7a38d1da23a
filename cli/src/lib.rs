//! The commands.
//!
//! - `modload` loads modules into a host inside its process, calls them, and unloads them. With `--host` it loads them
//!   into a running `modhost serve`, where they stay.
//! - `modunload` unloads modules from such a host.
//! - `modhost serve` runs such a host. `modhost list` and `modhost params` operate it, and `modhost trace` shows the
//!   functions that run in it.
//! - `modhost explain` shows a function before and after relocation and rewriting.
//! - `modhost image` shows the bytes of a module in the memory of another machine.
//! - `modhost klp-link` makes live patches of objects.
//! - `modhost inspect` and `modhost check` examine module files without running any of their code.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage.

#![deny(unsafe_code)]

mod args;
mod call;
mod check;
mod demo;
#[cfg(test)]
mod examples;
mod explain;
mod failure;
mod host_options;
mod image;
mod inspect;
mod klp_link;
mod operate;
mod operate_args;
mod patch;
mod patch_args;
mod output;
mod progress;
mod remote;
mod run;
mod serve;
mod signals;
mod telling;
mod trace;
mod trace_args;
mod trace_embedded;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Format, LoadTarget, ModloadCommand};
use crate::failure::CommandFailure;
use crate::operate_args::HostCommand;
use crate::output::CommandOutput;
use crate::trace_args::TraceFormat;

/// Returns the parsers of the three commands, for man pages and completions.
#[must_use]
pub fn commands() -> [clap::Command; 3] {
    [args::Arguments::command(), operate_args::HostArguments::command(), operate_args::Unload::command()]
}

/// Runs the command `modload`. The first argument is the name of the command.
pub fn modload(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(arguments) {
        Err(printed) => usage(&printed),
        Ok(ModloadCommand::Demo { format }) => end(format, demo::run(&mut CommandOutput::new(format))),
        Ok(ModloadCommand::Load(load)) => {
            let mut output = CommandOutput::new(load.format);
            let result = match &load.target {
                LoadTarget::Embedded(options) => run::load(&load, options, &mut output),
                LoadTarget::Served(socket) => remote::load(&load, socket, &mut output),
            };
            end(load.format, result)
        }
    }
}

/// Runs the command `modunload`. The first argument is the name of the command.
pub fn modunload(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match operate_args::parse_unload(arguments) {
        Err(printed) => usage(&printed),
        Ok(unload) => {
            let format = unload.connection.format;
            end(format, operate::unload(&unload, &mut CommandOutput::new(format)))
        }
    }
}

/// Runs the command `modhost`. The first argument is the name of the command.
pub fn modhost(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = match operate_args::parse_host(arguments) {
        Err(printed) => return usage(&printed),
        Ok(command) => command,
    };
    let printed = |format, run: &dyn Fn(&mut CommandOutput) -> Result<(), CommandFailure>| {
        end(format, run(&mut CommandOutput::new(format)))
    };
    match command {
        // `serve` locks the standard output stream only while it writes a line.
        HostCommand::Serve(serve) => end(Format::Text, serve::run(&serve)),
        HostCommand::List(list) => printed(list.connection.format, &|output| operate::list(&list, output)),
        HostCommand::Params(params) => printed(params.connection.format, &|output| operate::params(&params, output)),
        // `trace` prints records as they arrive, and not only to the standard output stream.
        HostCommand::Trace(trace) => {
            let json = trace.format == Some(TraceFormat::Json);
            end(if json { Format::Json } else { Format::Text }, trace::run(&trace))
        }
        HostCommand::Patch(command) => printed(command.connection().format, &|output| patch::run(&command, output)),
        HostCommand::KlpLink(link) => printed(link.format, &|output| klp_link::run(&link, output)),
        HostCommand::Check(check) => printed(check.format, &|output| check::run(&check, output)),
        HostCommand::Explain(explain) => printed(explain.format, &|output| explain::run(&explain, output)),
        HostCommand::Image(image) => printed(image.format, &|output| image::run(&image, output)),
        HostCommand::Inspect(inspect) => printed(inspect.format, &|output| inspect::run(&inspect, output)),
    }
}

/// Prints help, the version, or the error in the command line.
fn usage(printed: &clap::Error) -> ExitCode {
    match (printed.print(), printed.exit_code()) {
        (Ok(()), 0) => ExitCode::SUCCESS,
        // Help that cannot be written is a failure, like any other output.
        (Err(error), 0) => end(Format::Text, Err(error.into())),
        (_, _) => ExitCode::from(2),
    }
}

fn end(format: Format, result: Result<(), CommandFailure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(format);
            ExitCode::FAILURE
        }
    }
}
