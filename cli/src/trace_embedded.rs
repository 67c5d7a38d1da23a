//! `modload --trace-functions`: traces functions of the host inside this process.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use modload::Host;
use modload::trace::render::TracedProcess;
use modload::trace::{FunctionTrace, Mode, TraceOptions};

use crate::args::Format;
use crate::failure::CommandFailure;
use crate::output::CommandOutput;
use crate::telling::{Telling, TraceOutput};
use crate::trace_args::{TraceFormat, TraceFunctions};

/// The interval at which buffers are drained, also during a long call.
const TURN: Duration = Duration::from_millis(100);

/// A trace that runs in parallel to the loads and calls.
#[derive(Debug)]
pub(crate) struct Embedded {
    /// Dropping this ends the trace.
    going_on: Sender<()>,
    draining: JoinHandle<Result<String, CommandFailure>>,
}

impl Embedded {
    /// Begins a trace if functions are to be traced.
    pub(crate) fn begin(
        host: &Host,
        asked: &TraceFunctions,
        format: Format,
    ) -> Result<Option<Embedded>, CommandFailure> {
        if asked.patterns.is_empty() {
            return Ok(None);
        }
        let place = asked.out.as_deref().map_or(Ok(TraceOutput::Kept(String::new())), TraceOutput::file)?;
        let usual = if format == Format::Json { TraceFormat::Json } else { TraceFormat::usual(asked.graph) };
        let form = asked.form.unwrap_or(usual).form();
        let trace = host.trace_functions(&options(asked)?)?;
        let telling = Telling::begin(form, &TracedProcess { pid: std::process::id(), name: "modload".into() }, place)?;
        let (going_on, ended) = channel();
        let drain = move || drain(trace, telling, || ended.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout));
        let draining = thread::Builder::new().name("modload-trace".into()).spawn(drain)?;
        Ok(Some(Embedded { going_on, draining }))
    }

    /// Ends the trace, and prints it if it has not gone to a file.
    pub(crate) fn end(self, output: &mut CommandOutput) -> Result<(), CommandFailure> {
        drop(self.going_on);
        let text = self.draining.join().map_err(|_| io::Error::other("the trace panicked"))??;
        Ok(output.text(&text)?)
    }
}

fn options(asked: &TraceFunctions) -> Result<TraceOptions, CommandFailure> {
    let options = TraceOptions::new(if asked.graph { Mode::Graph } else { Mode::Calls });
    let options = asked.patterns.iter().try_fold(options, |options, pattern| options.pattern(pattern))?;
    Ok(asked.buffer.into_iter().fold(options, TraceOptions::buffer))
}

fn drain(mut trace: FunctionTrace, mut telling: Telling, goes_on: impl Fn() -> bool) -> Result<String, CommandFailure> {
    while goes_on() {
        telling.batch(trace.drain())?;
    }
    telling.batch(trace.finish())?;
    telling.end()
}
