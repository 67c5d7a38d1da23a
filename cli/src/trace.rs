//! `modhost trace`: traces functions of a running host, live.

use std::ops::ControlFlow;

use modload::trace::render::TracedProcess;
use modload_control::protocol::{Request, TraceMode, TraceRequest, TraceStarted, TraceableFunction};
use modload_control::{Client, TraceNews};

use crate::args::Format;
use crate::failure::{CommandFailure, plain, tell};
use crate::operate::connect_to;
use crate::output::CommandOutput;
use crate::signals;
use crate::telling::{Telling, TraceOutput};
use crate::trace_args::{TraceArguments, TraceFormat};

pub(crate) fn run(arguments: &TraceArguments) -> Result<(), CommandFailure> {
    if arguments.list {
        let json = arguments.format == Some(TraceFormat::Json);
        return list(arguments, &mut CommandOutput::new(if json { Format::Json } else { Format::Text }));
    }
    // Installed before tracing is switched on, so that no signal is lost.
    let stop = signals::stop()?;
    let client = connect_to(arguments.host.as_deref())?;
    let mut place = match &arguments.out {
        Some(path) => Some(TraceOutput::file(path)?),
        None => Some(TraceOutput::Stdout),
    };
    let form = arguments.format.unwrap_or(TraceFormat::usual(arguments.graph)).form();
    let mut telling = None;
    let mut written = Ok(());
    let traced = client.trace(&asked(arguments), &stop, |news| {
        written = match (news, &mut telling) {
            (TraceNews::Began(tracing), _) => place.take().map_or(Ok(()), |place| {
                telling = Some(Telling::begin(form, &process(tracing), place)?);
                Ok(())
            }),
            (TraceNews::Batch(batch), Some(telling)) => telling.batch(batch),
            (TraceNews::Batch(_), None) => Ok(()),
        };
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    // The output is completed in every case. If writing has failed before, nothing more is written.
    written?;
    let ended = telling.map_or(Ok(String::new()), Telling::end);
    traced?;
    ended.map(drop)
}

fn asked(arguments: &TraceArguments) -> TraceRequest {
    TraceRequest {
        patterns: arguments.pattern.clone(),
        mode: if arguments.graph { TraceMode::Graph } else { TraceMode::Calls },
        buffer: arguments.buffer,
        seconds: arguments.duration,
    }
}

/// Returns the traced process. Tells the user if no function matches yet.
fn process(tracing: TraceStarted) -> TracedProcess {
    if tracing.functions == 0 {
        tell("nothing that can be traced has such a name yet: modhost trace --list shows the functions");
    }
    TracedProcess { pid: tracing.pid, name: tracing.process }
}

/// Lists functions like Linux's `available_filter_functions`: the name, then the module.
fn list(arguments: &TraceArguments, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let mut client: Client = connect_to(arguments.host.as_deref())?;
    let request = Request::Traceable { patterns: arguments.pattern.clone() };
    let found: Vec<TraceableFunction> = client.request(&request, &[], |_, _| {})?;
    output.value(&found)?;
    for TraceableFunction { function, why_not, why_no_returns } in &found {
        let why_not = why_not.as_ref().map(|why| format!("  cannot be traced: {why}")).unwrap_or_default();
        let no_returns = why_no_returns.as_ref().map(|why| format!("  not with --graph: {why}")).unwrap_or_default();
        output.say(&plain(&format!("{} [{}]{why_not}{no_returns}", function.name, function.module)))?;
    }
    Ok(output.flush()?)
}
