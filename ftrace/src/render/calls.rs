//! Writes a line for each call, as Linux's tracer `function` prints it.

use std::fmt::{self, Write};

use super::FormWriter;
use super::names::{Names, fit};
use super::nesting::Nesting;
use crate::trace::{Record, ThreadAction};

/// The number of nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

const HEADER: &str = "\
# tracer: function
#
# without CPU#, irqs-off, need-resched, hardirq/softirq, preempt-depth: these are threads of a process
# TIMESTAMP: seconds since the recording began
#
#           TASK-TID           TIMESTAMP   FUNCTION
#              | |                 |          |
";

/// The form. The functions that threads are in are known only for recordings with entries and exits.
#[derive(Default, Debug)]
pub(super) struct Calls {
    nesting: Nesting,
}

impl FormWriter for Calls {
    fn begin(&mut self, out: &mut dyn Write) -> fmt::Result {
        out.write_str(HEADER)
    }

    fn record(&mut self, record: &Record, _: Option<&Record>, names: &Names, out: &mut dyn Write) -> fmt::Result {
        let parent = match &record.what {
            ThreadAction::Call { parent } => Some(fit(parent.clone())),
            ThreadAction::Enter => {
                let parent = self.nesting.innermost(record.thread).map(|frame| names.shown(frame.function).to_string());
                self.nesting.enter(record);
                parent
            }
            ThreadAction::Leave | ThreadAction::Unwound => {
                for _ in 0..self.nesting.ending(record) {
                    self.nesting.leave(record.thread);
                }
                return Ok(());
            }
        };
        let (tid, name) = names.thread(record.thread);
        let (seconds, rest) = (record.at / SECOND, record.at % SECOND);
        write!(out, "{name:>16}-{tid:<7} {seconds:>7}.{rest:09}: {}", names.shown(record.function))?;
        match parent {
            Some(parent) => writeln!(out, " <-{parent}"),
            None => writeln!(out),
        }
    }

    fn missed(&mut self, more: u64, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "# LOST {more} CALLS")
    }
}
