//! The standard output stream, for people or for programs.

use std::io::{self, Write};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use modload::State;
use modload::timeline::{Event, EventKind, Outcome, Timeline, Verdict};
use modload_control::protocol::ResultType;
use serde_json::json;

use crate::args::Format;
use crate::call::CallOption;
use crate::failure::plain;

/// The standard output stream. Colours are used on terminals only, and NO_COLOR turns them off.
pub(crate) struct CommandOutput {
    stream: AutoStream<io::StdoutLock<'static>>,
    format: Format,
}

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();
const UNDER_WAY: Style = AnsiColor::Yellow.on_default();
const LEAVING: Style = AnsiColor::Magenta.on_default();
const BAD: Style = AnsiColor::Red.on_default();

impl CommandOutput {
    pub(crate) fn new(format: Format) -> CommandOutput {
        CommandOutput { stream: AutoStream::auto(io::stdout()).lock(), format }
    }

    /// Prints a line in text format only.
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.stream, "{line}"),
            Format::Json => Ok(()),
        }
    }

    /// Prints text unchanged, in both formats.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes())
    }

    /// Prints a value as one line, in JSON format only.
    pub(crate) fn value(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        match self.format {
            Format::Text => Ok(()),
            Format::Json => writeln!(self.stream, "{}", serde_json::to_string(value).map_err(io::Error::other)?),
        }
    }

    /// Prints a heading, in text format only.
    pub(crate) fn heading(&mut self, line: &str) -> io::Result<()> {
        self.say(&format!("\n{BOLD}{line}{BOLD:#}"))
    }

    /// Prints the events from number `from` on. Returns the number of the next event.
    pub(crate) fn timeline(&mut self, timeline: &Timeline, from: usize) -> io::Result<usize> {
        for event in timeline.events.iter().skip(from) {
            match self.format {
                Format::Json => writeln!(self.stream, "{}", serde_json::to_string(event).map_err(io::Error::other)?)?,
                Format::Text => {
                    let style = style(event);
                    writeln!(self.stream, "{style}{event}{style:#}")?;
                }
            }
        }
        Ok(timeline.events.len())
    }

    /// Prints an event of a host, as data or as a line.
    pub(crate) fn event(&mut self, event: &serde_json::Value, text: &str) -> io::Result<()> {
        match self.format {
            Format::Json => writeln!(self.stream, "{event}"),
            Format::Text => writeln!(self.stream, "{}", plain(text)),
        }
    }

    /// Prints a call and its result.
    pub(crate) fn call(&mut self, module: &str, call: &CallOption, result: &serde_json::Value) -> io::Result<()> {
        match self.format {
            Format::Text if call.result == ResultType::Void => writeln!(self.stream, "{call}")?,
            Format::Text => writeln!(self.stream, "{call} = {result}")?,
            Format::Json => {
                let arguments = &call.arguments;
                let line = json!({ "event": "call", "module": module, "symbol": call.symbol, "arguments": arguments, "result": result });
                writeln!(self.stream, "{line}")?;
            }
        }
        // A later call may end the process, so the line is written out now.
        self.stream.flush()
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn style(event: &Event) -> Style {
    match &event.kind {
        EventKind::State { state: State::Live } => GOOD.bold(),
        EventKind::State { state: State::Going } => LEAVING.bold(),
        EventKind::State { .. } => UNDER_WAY.bold(),
        EventKind::Notify { result: Outcome::Ok, state: State::Going, .. } => LEAVING,
        EventKind::Notify { result: Outcome::Ok, .. } => Style::new(),
        EventKind::Notify { .. } | EventKind::Failed { .. } => BAD,
        EventKind::Warning { .. } => UNDER_WAY,
        EventKind::Policy { verdict: Verdict::Kept, .. } | EventKind::Stage { .. } => DIM,
        EventKind::Policy { verdict: Verdict::Warned, .. } => UNDER_WAY,
        EventKind::Policy { verdict: Verdict::Refused, .. } => BAD,
        EventKind::Quarantined { .. } => UNDER_WAY,
        // Also events of later versions.
        _ => Style::new(),
    }
}
