//! A table of functions: the number of calls, and their durations.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::Serialize;

use super::FormWriter;
use super::histogram::Histogram;
use super::names::Names;
use super::nesting::Nesting;
use crate::trace::{Missed, Record, ThreadAction};

/// The output format of the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    Table,
    Json,
}

/// The form.
#[derive(Debug)]
pub(super) struct Summary {
    layout: Layout,
    nesting: Nesting,
    functions: BTreeMap<u32, FunctionCounts>,
    /// The number of a thread's open calls of a function, if it is not 0.
    inside: BTreeMap<(u32, u32), u64>,
}

/// The counts of a function. Times are nanoseconds.
#[derive(Default, Debug)]
struct FunctionCounts {
    /// The number of calls, including calls that have not ended.
    calls: u64,
    /// The total duration. For recursive calls, the time from the first entry to the last exit.
    total: u64,
    /// The duration without traced functions that the function calls.
    own: u64,
    /// The durations of the calls that have ended.
    durations: Histogram,
}

/// A line of the table. Times are nanoseconds, and absent if the ends of the calls are not recorded.
#[derive(Serialize)]
struct SummaryRow<'a> {
    function: &'a str,
    module: &'a str,
    calls: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    #[serde(rename = "self", skip_serializing_if = "Option::is_none")]
    own: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<u64>,
}

/// The whole table.
#[derive(Serialize)]
struct SummaryTable<'a> {
    functions: &'a [SummaryRow<'a>],
    /// The calls that had not ended at the end of the recording: such calls are counted, but have no duration.
    unfinished: u64,
    missed: &'a Missed,
}

impl Summary {
    pub(super) fn new(layout: Layout) -> Summary {
        Summary { layout, nesting: Nesting::default(), functions: BTreeMap::new(), inside: BTreeMap::new() }
    }

    fn enter(&mut self, record: &Record) {
        self.nesting.enter(record);
        *self.inside.entry((record.thread, record.function)).or_default() += 1;
        self.functions.entry(record.function).or_default().calls += 1;
    }

    /// Ends the function that a thread has entered last.
    fn leave(&mut self, thread: u32, at: u64) {
        let Some(frame) = self.nesting.leave(thread) else { return };
        let took = at.saturating_sub(frame.entered);
        if let Some(caller) = self.nesting.innermost(thread) {
            caller.callees = caller.callees.saturating_add(took);
        }
        let counts = self.functions.entry(frame.function).or_default();
        counts.durations.add(took);
        // Impossible times from another source lead to impossible sums.
        counts.own = counts.own.saturating_add(took.saturating_sub(frame.callees));
        let place = (thread, frame.function);
        let inside = self.inside.remove(&place).unwrap_or_default().saturating_sub(1);
        if inside == 0 {
            counts.total = counts.total.saturating_add(took);
        } else {
            self.inside.insert(place, inside);
        }
    }

    /// Returns the table's lines, the greatest total first.
    fn rows<'n>(&self, names: &'n Names) -> Vec<SummaryRow<'n>> {
        let row = |(function, counts): (&u32, &FunctionCounts)| {
            let (module, function) = names.function(*function);
            let (p50, p99) = (counts.durations.percentile(50), counts.durations.percentile(99));
            let (total, own) = (p50.map(|_| counts.total), p50.map(|_| counts.own));
            SummaryRow { function, module, calls: counts.calls, total, own, p50, p99 }
        };
        let mut rows: Vec<_> = self.functions.iter().map(row).collect();
        rows.sort_by_key(|row| (Reverse(row.total), Reverse(row.calls), row.module, row.function));
        rows
    }
}

impl FormWriter for Summary {
    fn begin(&mut self, _: &mut dyn Write) -> fmt::Result {
        Ok(())
    }

    fn record(&mut self, record: &Record, _: Option<&Record>, _: &Names, _: &mut dyn Write) -> fmt::Result {
        match record.what {
            ThreadAction::Call { .. } => self.functions.entry(record.function).or_default().calls += 1,
            ThreadAction::Enter => self.enter(record),
            ThreadAction::Leave | ThreadAction::Unwound => {
                for _ in 0..self.nesting.ending(record) {
                    self.leave(record.thread, record.at);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, names: &Names, missed: &Missed, out: &mut dyn Write) -> fmt::Result {
        let rows = self.rows(names);
        let unfinished = self.inside.values().sum();
        match self.layout {
            Layout::Json => {
                let table = SummaryTable { functions: &rows, unfinished, missed };
                writeln!(out, "{}", serde_json::to_string(&table).map_err(|_| fmt::Error)?)
            }
            Layout::Table => table(&rows, unfinished, out),
        }
    }
}

/// Writes names to the left and numbers to the right. Without durations there are no columns for them.
fn table(rows: &[SummaryRow<'_>], unfinished: u64, out: &mut dyn Write) -> fmt::Result {
    let width = |name: for<'r> fn(&'r SummaryRow<'_>) -> &'r str, heading: &str| {
        rows.iter().map(|row| name(row).chars().count()).chain([heading.len()]).max().unwrap_or_default()
    };
    let (function, module) = (width(|row| row.function, "FUNCTION"), width(|row| row.module, "MODULE"));
    let timed = rows.iter().any(|row| row.total.is_some());
    write!(out, "{:function$}  {:module$}  {:>12}", "FUNCTION", "MODULE", "CALLS")?;
    if timed {
        write!(out, "  {:>14}  {:>14}  {:>12}  {:>12}", "TOTAL us", "SELF us", "P50 us", "P99 us")?;
    }
    writeln!(out)?;
    for row in rows {
        write!(out, "{:function$}  {:module$}  {:>12}", row.function, row.module, row.calls)?;
        if timed {
            let us = |ns: Option<u64>| ns.map_or_else(|| "-".into(), |ns| format!("{}.{:03}", ns / 1000, ns % 1000));
            let [total, own, p50, p99] = [row.total, row.own, row.p50, row.p99].map(us);
            write!(out, "  {total:>14}  {own:>14}  {p50:>12}  {p99:>12}")?;
        }
        writeln!(out)?;
    }
    match unfinished {
        0 => Ok(()),
        1 => writeln!(out, "1 call had not ended: it counts, but not its time"),
        more => writeln!(out, "{more} calls had not ended: they count, but not their time"),
    }
}
