//! Writes nested calls, as Linux's tracer `function_graph` prints them.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::FormWriter;
use super::names::{Names, fit};
use super::nesting::Nesting;
use crate::trace::{Record, ThreadAction};

/// The indentation of a call within its caller.
const INDENT: usize = 2;

/// The marks for durations that exceed a number of nanoseconds, the longest first.
const MARKS: [(u64, char); 6] =
    [(1_000_000_000, '$'), (100_000_000, '@'), (10_000_000, '*'), (1_000_000, '#'), (100_000, '!'), (10_000, '+')];

const HEADER: &str = "\
# tracer: function_graph
#
# without CPU: these are threads of a process, and TID stands in its place
#
#    TID     DURATION                  FUNCTION CALLS
#     |       |   |                     |   |   |   |
";

/// The line above and below a switch to another thread.
const RULE: &str = " ------------------------------------------";

/// The form.
#[derive(Default, Debug)]
pub(super) struct Graph {
    nesting: Nesting,
    /// The threads whose next record is the exit of a function that was written as a leaf already.
    leaves: BTreeSet<u32>,
    /// The thread of the last line.
    last: Option<u32>,
}

impl FormWriter for Graph {
    fn begin(&mut self, out: &mut dyn Write) -> fmt::Result {
        out.write_str(HEADER)
    }

    fn record(&mut self, record: &Record, next: Option<&Record>, names: &Names, out: &mut dyn Write) -> fmt::Result {
        if self.leaves.remove(&record.thread) {
            return Ok(());
        }
        match &record.what {
            ThreadAction::Call { parent } => {
                let parent = fit(parent.clone());
                self.line(record, None, names, out)?;
                writeln!(out, "{}(); /* <-{parent} */", names.shown(record.function))
            }
            ThreadAction::Enter => {
                let ended = next.filter(|next| next.what == ThreadAction::Leave && next.function == record.function);
                let took = ended.map(|next| next.at.saturating_sub(record.at));
                self.line(record, took, names, out)?;
                if took.is_some() {
                    self.leaves.insert(record.thread);
                    return writeln!(out, "{}();", names.shown(record.function));
                }
                self.nesting.enter(record);
                writeln!(out, "{}() {{", names.shown(record.function))
            }
            ThreadAction::Leave | ThreadAction::Unwound => self.left(record, names, out),
        }
    }

    fn missed(&mut self, more: u64, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "# LOST {more} CALLS")
    }
}

impl Graph {
    /// Writes the end of a function, and of functions that it called if their ends are not recorded.
    fn left(&mut self, record: &Record, names: &Names, out: &mut dyn Write) -> fmt::Result {
        let ending = self.nesting.ending(record);
        for above in (0..ending).rev() {
            let Some(frame) = self.nesting.leave(record.thread) else { break };
            self.line(record, Some(record.at.saturating_sub(frame.entered)), names, out)?;
            let unwound = if above != 0 || record.what == ThreadAction::Unwound { ": unwound" } else { "" };
            writeln!(out, "}} /* {}{unwound} */", names.shown(frame.function))?;
        }
        if ending == 0 {
            self.line(record, None, names, out)?;
            writeln!(out, "}} /* {} */", names.shown(record.function))?;
        }
        Ok(())
    }

    /// Writes a line up to the function's name.
    fn line(&mut self, record: &Record, took: Option<u64>, names: &Names, out: &mut dyn Write) -> fmt::Result {
        if self.last != Some(record.thread) {
            self.switch(record.thread, names, out)?;
        }
        let (tid, _) = names.thread(record.thread);
        let duration = took.map(duration).unwrap_or_default();
        write!(out, "{tid:>7}) {duration:<14}|  {:width$}", "", width = INDENT * self.nesting.depth(record.thread))
    }

    fn switch(&mut self, thread: u32, names: &Names, out: &mut dyn Write) -> fmt::Result {
        let shown = |thread| {
            let (tid, name) = names.thread(thread);
            format!("{name}-{tid}")
        };
        let from = self.last.replace(thread).map(|last| shown(last) + " ").unwrap_or_default();
        writeln!(out, "{RULE}\n  {from}=> {}\n{RULE}\n", shown(thread))
    }
}

/// Returns a duration with its mark: microseconds with three decimals. Decimals that would make it longer than eight
/// characters are cut off.
fn duration(ns: u64) -> String {
    let mark = MARKS.iter().find(|(limit, _)| ns > *limit).map_or(' ', |(_, mark)| *mark);
    let mut text = format!("{}.{:03}", ns / 1000, ns % 1000);
    let whole = text.len() - 4;
    text.truncate(if whole >= 7 { whole } else { text.len().min(8) });
    format!("{mark} {text} us")
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_are_as_linux_prints_them() {
        // The values are from Documentation/trace/ftrace.rst, and the limits of each mark.
        for (ns, text) in [
            (0, "  0.000 us"),
            (313, "  0.313 us"),
            (10_000, "  10.000 us"),
            (10_001, "+ 10.001 us"),
            (61_770, "+ 61.770 us"),
            (140_417, "! 140.417 us"),
            (1_000_000, "! 1000.000 us"),
            (1_837_709, "# 1837.709 us"),
            (33_998_591, "* 33998.59 us"),
            (119_760_249, "@ 119760.2 us"),
            (3_594_274_999, "$ 3594274 us"),
            (u64::MAX, "$ 18446744073709551 us"),
        ] {
            assert_eq!(duration(ns), text, "{ns}");
        }
    }
}
