//! The commands.
//!
//! - `modload` loads modules into a host that lasts as long as the command, calls them, and unloads them; with `--host`
//!   it loads them into a host that serves, where they stay.
//! - `modunload` takes modules out of such a host.
//! - `modhost serve` is one; `modhost list` and `modhost params` operate it, and `modhost trace` shows which functions run in it.
//! - `modhost explain` shows a function before and after it is relocated and rewritten.
//! - `modhost image` shows what a module would be in another machine's memory.
//! - `modhost klp-link` makes live patches of objects.
//! - `modhost inspect` and `modhost check` look at module files, without running anything of them.
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

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Command, Format, Target};
use crate::failure::Failure;
use crate::operate_args::HostCommand;
use crate::output::Output;
use crate::trace_args::TraceFormat;

/// What the three commands take, as their parsers have it: for man pages and completions.
#[must_use]
pub fn commands() -> [clap::Command; 3] {
    [args::Arguments::command(), operate_args::HostArguments::command(), operate_args::Unload::command()]
}

/// The command `modload`, with its own name as the first argument.
pub fn modload(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(arguments) {
        Err(printed) => usage(&printed),
        Ok(Command::Demo { format }) => end(format, demo::run(&mut Output::new(format))),
        Ok(Command::Load(load)) => {
            let mut output = Output::new(load.format);
            let result = match &load.target {
                Target::Embedded(options) => run::load(&load, options, &mut output),
                Target::Served(socket) => remote::load(&load, socket, &mut output),
            };
            end(load.format, result)
        }
    }
}

/// The command `modunload`, with its own name as the first argument.
pub fn modunload(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match operate_args::parse_unload(arguments) {
        Err(printed) => usage(&printed),
        Ok(unload) => {
            let format = unload.connection.format;
            end(format, operate::unload(&unload, &mut Output::new(format)))
        }
    }
}

/// The command `modhost`, with its own name as the first argument.
pub fn modhost(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = match operate_args::parse_host(arguments) {
        Err(printed) => return usage(&printed),
        Ok(command) => command,
    };
    let printed = |format, run: &dyn Fn(&mut Output) -> Result<(), Failure>| end(format, run(&mut Output::new(format)));
    match command {
        // It holds the standard output stream for the length of a line.
        HostCommand::Serve(serve) => end(Format::Text, serve::run(&serve)),
        HostCommand::List(list) => printed(list.connection.format, &|output| operate::list(&list, output)),
        HostCommand::Params(params) => printed(params.connection.format, &|output| operate::params(&params, output)),
        // It prints as it comes, and not only on the standard output stream.
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

/// Prints help, the version, or what is wrong.
fn usage(printed: &clap::Error) -> ExitCode {
    match (printed.print(), printed.exit_code()) {
        (Ok(()), 0) => ExitCode::SUCCESS,
        // Help that cannot be had is a failure, as any other output is.
        (Err(error), 0) => end(Format::Text, Err(error.into())),
        (_, _) => ExitCode::from(2),
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
