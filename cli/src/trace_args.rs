//! What the commands take that trace functions.

use std::path::PathBuf;

use clap::ValueEnum;
use modload::trace::render::Form;
use modload::trace::{BadPattern, Pattern};

pub(crate) const EXAMPLES: &str = "\
Examples:
  modhost trace -p 'greet:*'
      Every call of a function of the module greet as it happens, until ctrl-C.
  modhost trace --graph -p 'greet:*' -p guest_again -p '!*_lock'
      Calls within calls and how long they took, without functions whose names end in _lock.
  modhost trace --graph --duration 10 --format chrome --out trace.json
      Ten seconds of all functions that can be traced, for ui.perfetto.dev or chrome://tracing.
  modhost trace --graph --duration 10 --format summary
      A table: calls, total, self, p50, p99.
  modhost trace --list -p 'greet:*'
      What can be traced, and why the rest cannot.

Functions can be traced if they are compiled so: cc -fpatchable-function-entry=5, or -pg -mfentry -mrecord-mcount.
Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

/// Which functions of which host are traced, and how that is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Trace {
    /// The socket it serves at. MODLOAD_HOST if that is set, else $XDG_RUNTIME_DIR/modload.sock, else
    /// /run/modload.sock for root.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) host: Option<PathBuf>,

    /// Functions by name, [MODULE:]FUNCTION with *, ? and [..], also of modules that are loaded later; with ! in front, those
    /// that are left out. Without it, all. May be repeated.
    #[arg(short, long, value_name = "GLOB", value_parser = pattern)]
    pub(crate) pattern: Vec<String>,

    /// Record when functions return, too.
    #[arg(long)]
    pub(crate) graph: bool,

    /// For so many seconds; else until ctrl-C.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) duration: Option<u64>,

    /// The size of each thread's buffer, from 4096 bytes to 1 GiB; else 1 MiB. What does not fit into it between two looks, ten a
    /// second, is dropped and counted.
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer: Option<u64>,

    /// Write it into this file instead of the standard output stream.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// How to tell it: function, or graph with --graph, if nothing else is said.
    #[arg(long, value_enum)]
    pub(crate) format: Option<TraceFormat>,

    /// Only say which functions can be traced, and why others cannot.
    #[arg(long, conflicts_with_all = ["graph", "duration", "buffer", "out"])]
    pub(crate) list: bool,
}

/// How a trace is told.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum TraceFormat {
    /// A line for each call, as Linux's function tracer has it.
    Function,
    /// Calls within calls and their durations, as Linux's function_graph tracer has it.
    Graph,
    /// Trace events for Perfetto and chrome://tracing.
    Chrome,
    /// A table of functions.
    Summary,
    /// The table as JSON.
    Json,
}

/// What `modload` traces in the host that it embeds.
#[derive(clap::Args, Debug)]
pub(crate) struct TraceFunctions {
    /// Trace these functions while the modules are loaded and called, and print the trace after the calls: [MODULE:]FUNCTION
    /// with *, ? and [..]; with ! in front, those that are left out. May be repeated.
    #[arg(long = "trace-functions", value_name = "GLOB", value_parser = pattern)]
    pub(crate) patterns: Vec<String>,

    /// Record when functions return, too.
    #[arg(long = "trace-graph", requires = "patterns")]
    pub(crate) graph: bool,

    /// How to tell the trace: function, or graph with --trace-graph, or json with --format json, if nothing else is said.
    #[arg(long = "trace-format", value_enum, value_name = "FORMAT", requires = "patterns")]
    pub(crate) form: Option<TraceFormat>,

    /// The size of each thread's buffer, in bytes.
    #[arg(long = "trace-buffer", value_name = "BYTES", requires = "patterns")]
    pub(crate) buffer: Option<u64>,

    /// Write the trace into this file.
    #[arg(long = "trace-out", value_name = "FILE", requires = "patterns")]
    pub(crate) out: Option<PathBuf>,
}

impl TraceFormat {
    /// What is told if nothing else is said.
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

impl Trace {
    /// What no single option can know.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.format {
            Some(format) if self.list && format != TraceFormat::Json => {
                Err("--list is told as text, or with --format json".into())
            }
            Some(TraceFormat::Graph) if !self.graph => {
                Err("--format graph tells when functions return, and only --graph has that recorded".into())
            }
            _ => Ok(()),
        }
    }
}

impl TraceFunctions {
    /// The same for `modload`, whose standard output stream has more than the trace.
    pub(crate) fn check(&self, json: bool) -> Result<(), String> {
        match self.form {
            Some(TraceFormat::Graph) if !self.graph => {
                Err("--trace-format graph tells when functions return, and only --trace-graph has that recorded".into())
            }
            Some(form) if json && form != TraceFormat::Json && self.out.is_none() => {
                Err("with --format json another --trace-format goes into a file: --trace-out FILE".into())
            }
            _ => Ok(()),
        }
    }
}

/// A pattern, checked.
fn pattern(text: &str) -> Result<String, BadPattern> {
    text.parse::<Pattern>().map(|_| text.to_owned())
}
