//! The options for tracing functions.

use std::path::PathBuf;

use clap::ValueEnum;
use modload::trace::render::Form;
use modload::trace::{BadPattern, Pattern};

pub(crate) const EXAMPLES: &str = "\
Examples:
  modhost trace -p 'greet:*'
      Shows every call of a function of the module greet live, until ctrl-C.
  modhost trace --graph -p 'greet:*' -p guest_again -p '!*_lock'
      Shows nested calls with their durations, without functions whose names end in _lock.
  modhost trace --graph --duration 10 --format chrome --out trace.json
      Records all traceable functions for ten seconds, for ui.perfetto.dev or chrome://tracing.
  modhost trace --graph --duration 10 --format summary
      A table: calls, total, self, p50, p99.
  modhost trace --list -p 'greet:*'
      Lists the functions, with a reason for each that cannot be traced.

Functions can be traced if compiled with -fpatchable-function-entry=5, or with -pg -mfentry -mrecord-mcount.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// The functions to trace, and the output.
#[derive(clap::Args, Debug)]
pub(crate) struct TraceArguments {
    /// The socket of the host. Default: MODLOAD_HOST if set, else $XDG_RUNTIME_DIR/modload.sock, or /run/modload.sock
    /// for root.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) host: Option<PathBuf>,

    /// Trace functions that match [MODULE:]FUNCTION with *, ? and [..], also of modules that are loaded later. A
    /// pattern with a leading ! excludes functions. Without this option all functions are traced. May be repeated.
    #[arg(short, long, value_name = "GLOB", value_parser = pattern)]
    pub(crate) pattern: Vec<String>,

    /// Also record when functions return.
    #[arg(long)]
    pub(crate) graph: bool,

    /// Stop after so many seconds. Without this option the trace runs until ctrl-C.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: Option<u64>,

    /// The size of each thread's buffer, from 4096 bytes to 1 GiB. The default is 1 MiB. Buffers are read ten times a
    /// second. Records that do not fit are dropped and counted.
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer: Option<u64>,

    /// Write the trace to this file instead of the standard output stream.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// The output format. Default: function, or graph with --graph.
    #[arg(long, value_enum)]
    pub(crate) format: Option<TraceFormat>,

    /// Only list the functions that can be traced, and why others cannot.
    #[arg(long, conflicts_with_all = ["graph", "duration", "buffer", "out"])]
    pub(crate) list: bool,
}

/// The output format of a trace.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum TraceFormat {
    /// A line per call, like Linux's function tracer.
    Function,
    /// Nested calls with durations, like Linux's function_graph tracer.
    Graph,
    /// Trace events for Perfetto and chrome://tracing.
    Chrome,
    /// A table of functions.
    Summary,
    /// The table as JSON.
    Json,
}

/// The tracing options of `modload`, for the host inside its process.
#[derive(clap::Args, Debug)]
pub(crate) struct TraceFunctions {
    /// Trace these functions while modules are loaded and called, and print the trace after the calls. Patterns have
    /// the form [MODULE:]FUNCTION with *, ? and [..]. A pattern with a leading ! excludes functions. May be repeated.
    #[arg(long = "trace-functions", value_name = "GLOB", value_parser = pattern)]
    pub(crate) patterns: Vec<String>,

    /// Also record when functions return.
    #[arg(long = "trace-graph", requires = "patterns")]
    pub(crate) graph: bool,

    /// The output format of the trace. Default: function, or graph with --trace-graph, or json with --format json.
    #[arg(long = "trace-format", value_enum, value_name = "FORMAT", requires = "patterns")]
    pub(crate) form: Option<TraceFormat>,

    /// The size of each thread's buffer in bytes.
    #[arg(long = "trace-buffer", value_name = "BYTES", requires = "patterns")]
    pub(crate) buffer: Option<u64>,

    /// Write the trace to this file.
    #[arg(long = "trace-out", value_name = "FILE", requires = "patterns")]
    pub(crate) out: Option<PathBuf>,
}

impl TraceFormat {
    /// Returns the default format.
    pub(crate) fn usual(graph: bool) -> TraceFormat {
        if graph { TraceFormat::Graph } else { TraceFormat::Function }
    }

    pub(crate) fn form(self) -> Form {
        match self {
            TraceFormat::Function => Form::Function,
            TraceFormat::Graph => Form::Graph,
            TraceFormat::Chrome => Form::Chrome,
            TraceFormat::Summary => Form::Summary,
            TraceFormat::Json => Form::SummaryJson,
        }
    }
}

impl TraceArguments {
    /// Checks the combination of options.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.format {
            Some(format) if self.list && format != TraceFormat::Json => {
                Err("--list is told as text or as JSON: leave --format out, or use --format json".into())
            }
            Some(TraceFormat::Graph) if !self.graph => {
                Err("--format graph shows when functions return, and only --graph has that recorded: add --graph"
                    .into())
            }
            _ => Ok(()),
        }
    }
}

impl TraceFunctions {
    /// Checks the combination of options for `modload`, which also prints other things to the standard output stream.
    pub(crate) fn check(&self, json: bool) -> Result<(), String> {
        match self.form {
            Some(TraceFormat::Graph) if !self.graph => {
                Err("--trace-format graph shows when functions return, and only --trace-graph has that recorded: add \
                     --trace-graph"
                    .into())
            }
            Some(form) if json && form != TraceFormat::Json && self.out.is_none() => {
                Err("with --format json another --trace-format must go to a file: add --trace-out FILE".into())
            }
            _ => Ok(()),
        }
    }
}

/// Checks a pattern.
fn pattern(text: &str) -> Result<String, BadPattern> {
    text.parse::<Pattern>().map(|_| text.to_owned())
}
