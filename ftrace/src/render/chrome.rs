//! The Trace Event Format: one JSON object, which Perfetto and chrome://tracing read.
//!
//! Entries and exits are `B` and `E` events, which can be written at once. Each `B` has its `E` when the object is
//! complete.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use serde_json::{Value, json};

use super::names::{Names, fit};
use super::nesting::Nesting;
use super::{FormWriter, TracedProcess};
use crate::trace::{Missed, Record, ThreadAction};

/// The form.
#[derive(Debug)]
pub(super) struct Chrome {
    process: TracedProcess,
    nesting: Nesting,
    /// The threads that have been named.
    named: BTreeSet<u32>,
    /// The time of the last record.
    now: u64,
}

/// The fields of an event that differ between events.
struct ChromeEvent<'a> {
    phase: char,
    thread: u32,
    at: u64,
    function: u32,
    /// The content of `args`, if any.
    more: Option<(&'a str, Value)>,
}

impl Chrome {
    pub(super) fn new(process: &TracedProcess) -> Chrome {
        let process = TracedProcess { pid: process.pid, name: fit(process.name.clone()) };
        Chrome { process, nesting: Nesting::default(), named: BTreeSet::new(), now: 0 }
    }

    /// Names a thread before its first event.
    fn name(&mut self, thread: u32, names: &Names, out: &mut dyn Write) -> fmt::Result {
        if !self.named.insert(thread) {
            return Ok(());
        }
        let (tid, name) = names.thread(thread);
        let event =
            json!({ "ph": "M", "pid": self.process.pid, "tid": tid, "name": "thread_name", "args": { "name": name } });
        write!(out, ",\n{event}")
    }

    fn event(&self, event: &ChromeEvent<'_>, names: &Names, out: &mut dyn Write) -> fmt::Result {
        let (tid, _) = names.thread(event.thread);
        let (module, name) = names.function(event.function);
        let (us, ns) = (event.at / 1000, event.at % 1000);
        // The event is written by hand because of its time: a binary fraction would soon lose the nanoseconds.
        let (name, module) = (Value::from(name), Value::from(module));
        write!(out, ",\n{{\"ph\":\"{}\",\"pid\":{},\"tid\":{tid},\"ts\":{us}.{ns:03}", event.phase, self.process.pid)?;
        write!(out, ",\"name\":{name},\"cat\":{module}")?;
        if event.phase == 'i' {
            // The event's scope is its thread.
            out.write_str(",\"s\":\"t\"")?;
        }
        if let Some((key, value)) = &event.more {
            write!(out, ",\"args\":{{\"{key}\":{value}}}")?;
        }
        out.write_str("}")
    }

    /// Writes the end, at this time, of the function that a thread has entered last.
    fn leave(&mut self, thread: u32, why: Option<&str>, names: &Names, out: &mut dyn Write) -> fmt::Result {
        let Some(frame) = self.nesting.leave(thread) else { return Ok(()) };
        let more = why.map(|why| (why, true.into()));
        self.event(&ChromeEvent { phase: 'E', thread, at: self.now, function: frame.function, more }, names, out)
    }
}

impl FormWriter for Chrome {
    fn begin(&mut self, out: &mut dyn Write) -> fmt::Result {
        let TracedProcess { pid, name } = &self.process;
        let process = json!({ "ph": "M", "pid": pid, "name": "process_name", "args": { "name": name } });
        write!(out, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{process}")
    }

    fn record(&mut self, record: &Record, _: Option<&Record>, names: &Names, out: &mut dyn Write) -> fmt::Result {
        self.now = record.at;
        let Record { thread, at, function, .. } = *record;
        self.name(thread, names, out)?;
        match &record.what {
            ThreadAction::Call { parent } => {
                let more = Some(("parent", fit(parent.clone()).into()));
                self.event(&ChromeEvent { phase: 'i', thread, at, function, more }, names, out)
            }
            ThreadAction::Enter => {
                self.nesting.enter(record);
                self.event(&ChromeEvent { phase: 'B', thread, at, function, more: None }, names, out)
            }
            ThreadAction::Leave | ThreadAction::Unwound => {
                let ending = self.nesting.ending(record);
                let why = |above| (above != 0 || record.what == ThreadAction::Unwound).then_some("unwound");
                (0..ending).rev().try_for_each(|above| self.leave(thread, why(above), names, out))
            }
        }
    }

    fn end(&mut self, names: &Names, missed: &Missed, out: &mut dyn Write) -> fmt::Result {
        for thread in self.nesting.threads() {
            while self.nesting.depth(thread) != 0 {
                self.leave(thread, Some("unfinished"), names, out)?;
            }
        }
        writeln!(out, "\n],\"otherData\":{}}}", json!({ "missed": missed }))
    }
}
