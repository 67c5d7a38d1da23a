//! Renders a recording: as Linux's two tracers print it, as Chrome's trace events, or as a table.
//!
//! The input is batches. The output is text, as much as can be written at that time. A [`Renderer`] keeps the state
//! between two batches: names, the functions that threads are in, and records that are too early. A renderer does no
//! I/O and trusts no input, because batches may come through a socket from a host that belongs to another user.
//!
//! A drain reads one thread after the other. So a record of the second thread may be younger than a record of the first
//! thread that only the next batch has. To restore the order, records are held back by one batch. The last records are
//! written by [`Renderer::end`].

mod names;
mod merge;
mod nesting;
mod calls;
mod graph;
mod chrome;
mod histogram;
mod summary;

use std::fmt::{self, Debug, Write};

use crate::trace::{Batch, Missed, Record};
use merge::Merge;
use names::Names;

/// The output form of a recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A line for each call, as in Linux's tracer `function`: `TASK-TID TIMESTAMP: function <-parent`. Times are
    /// seconds with nine decimals. For a recording with entries and exits the lines are the entries, and the parent is
    /// the traced function that was entered last.
    Function,
    /// Nested calls and their durations, as in Linux's tracer `function_graph`. Times are microseconds. A recording of
    /// calls has no durations.
    Graph,
    /// One JSON object of the Trace Event Format (`B`, `E`, `i` and `M` events), which Perfetto and chrome://tracing
    /// read. Times are microseconds with three decimals. The object is well-formed only after the end of the recording.
    Chrome,
    /// A table, the function with the greatest total first. Times are microseconds. The table is written at the end.
    Summary,
    /// The summary as one JSON object in one line. Times are nanoseconds.
    SummaryJson,
}

/// The process that was traced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TracedProcess {
    /// The process's id.
    pub pid: u32,
    /// The process's name.
    pub name: String,
}

/// A recording that is being rendered.
#[derive(Debug)]
pub struct Renderer {
    names: Names,
    merge: Merge,
    missed: Missed,
    form: Box<dyn FormWriter>,
}

/// A form, which receives every record, ordered by time, and writes text for the record.
trait FormWriter: Debug + Send {
    /// Writes the text before the first record.
    fn begin(&mut self, out: &mut dyn Write) -> fmt::Result;

    /// Writes a record. `next` is the same thread's next record, if it is known already.
    fn record(&mut self, record: &Record, next: Option<&Record>, names: &Names, out: &mut dyn Write) -> fmt::Result;

    /// Reports the number of further calls that are not in the recording.
    fn missed(&mut self, _more: u64, _out: &mut dyn Write) -> fmt::Result {
        Ok(())
    }

    /// Writes the text after the last record.
    fn end(&mut self, _names: &Names, _missed: &Missed, _out: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
}

impl Renderer {
    /// Starts to render a recording: the text before the first record is written at once.
    ///
    /// # Errors
    /// Only errors of `out`. A [`String`] has none.
    pub fn begin(form: Form, process: &TracedProcess, out: &mut dyn Write) -> Result<Renderer, fmt::Error> {
        let form: Box<dyn FormWriter> = match form {
            Form::Function => Box::new(calls::Calls::default()),
            Form::Graph => Box::new(graph::Graph::default()),
            Form::Chrome => Box::new(chrome::Chrome::new(process)),
            Form::Summary => Box::new(summary::Summary::new(summary::Layout::Table)),
            Form::SummaryJson => Box::new(summary::Summary::new(summary::Layout::Json)),
        };
        let mut renderer =
            Renderer { names: Names::default(), merge: Merge::default(), missed: Missed::default(), form };
        renderer.form.begin(out)?;
        Ok(renderer)
    }

    /// Takes a batch, and writes the text that can be written now.
    ///
    /// # Errors
    /// Only errors of `out`.
    pub fn batch(&mut self, batch: Batch, out: &mut dyn Write) -> fmt::Result {
        let more = batch.missed.total().saturating_sub(self.missed.total());
        self.missed = batch.missed;
        self.names.extend(batch.functions, batch.threads);
        self.merge.push(batch.records);
        // The records that are written now belong to the batch before, so missed calls are reported between the two
        // batches.
        self.write_final_records(out)?;
        if more != 0 { self.form.missed(more, out) } else { Ok(()) }
    }

    /// Writes the remaining text.
    ///
    /// # Errors
    /// Only errors of `out`.
    pub fn end(mut self, out: &mut dyn Write) -> fmt::Result {
        self.merge.close();
        self.write_final_records(out)?;
        self.form.end(&self.names, &self.missed, out)
    }

    fn write_final_records(&mut self, out: &mut dyn Write) -> fmt::Result {
        while let Some((record, next)) = self.merge.next() {
            self.form.record(&record, next, &self.names, out)?;
        }
        Ok(())
    }
}

impl Form {
    /// Renders a whole recording, batch after batch.
    #[must_use]
    pub fn whole(self, process: &TracedProcess, batches: impl IntoIterator<Item = Batch>) -> String {
        let mut text = String::new();
        let told = Renderer::begin(self, process, &mut text).and_then(|mut renderer| {
            batches.into_iter().try_for_each(|batch| renderer.batch(batch, &mut text))?;
            renderer.end(&mut text)
        });
        debug_assert_eq!(told, Ok(()), "a String takes whatever is written");
        text
    }
}
