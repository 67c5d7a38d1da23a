//! What a recording looks like: as Linux's two tracers print it, as Chrome's trace events, as a table.
//!
//! Batches go in, text comes out, as much of it as can be told by then. A [`Renderer`] owns what has to be remembered from one
//! batch to the next: names, who is in which function, what has come too early. It does no I/O, and takes nothing for granted:
//! batches may come through a socket from a host that is somebody else's.
//!
//! A drain asks one thread after the other, so that a record of the second may be younger than one of the first that only the
//! next batch has. Records are held back until that cannot be: by one batch. The last ones come with [`Renderer::end`].

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

/// In which form a recording is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// A line for each call, as Linux's tracer `function` has it: `TASK-TID TIMESTAMP: function <-parent`. Times are seconds
    /// with nine decimals. Of a recording with entries and exits these are the entries, and the parent is the function that was
    /// entered last and is traced.
    Function,
    /// Calls within calls and how long they took, as Linux's tracer `function_graph` has it. Times are microseconds. A
    /// recording of calls has no durations.
    Graph,
    /// One JSON object of the Trace Event Format (`B`, `E`, `i` and `M` events), which Perfetto and chrome://tracing read.
    /// Times are microseconds with three decimals. It is well-formed only when it has been ended.
    Chrome,
    /// A table, the function with the greatest total first. Times are microseconds. It comes at the end.
    Summary,
    /// The same as one JSON object in one line. Times are nanoseconds.
    SummaryJson,
}

/// The process that was traced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// A recording on its way into a form.
#[derive(Debug)]
pub struct Renderer {
    names: Names,
    merge: Merge,
    missed: Missed,
    form: Box<dyn Told>,
}

/// A form: hears of every record, by time, and writes what it has to say of it.
trait Told: Debug + Send {
    /// Before everything else.
    fn begin(&mut self, out: &mut dyn Write) -> fmt::Result;

    /// A record. `next` is the same thread's next one, if it is known by now.
    fn record(&mut self, record: &Record, next: Option<&Record>, names: &Names, out: &mut dyn Write) -> fmt::Result;

    /// So many more calls are not in the recording.
    fn missed(&mut self, _more: u64, _out: &mut dyn Write) -> fmt::Result {
        Ok(())
    }

    /// After everything else.
    fn end(&mut self, _names: &Names, _missed: &Missed, _out: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
}

impl Renderer {
    /// Begins to tell a recording: what stands before the first record is written at once.
    ///
    /// # Errors
    /// Only those of `out`. A [`String`] has none.
    pub fn begin(form: Form, process: &Process, out: &mut dyn Write) -> Result<Renderer, fmt::Error> {
        let form: Box<dyn Told> = match form {
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

    /// Takes a batch, and writes what can be told now.
    ///
    /// # Errors
    /// Only those of `out`.
    pub fn batch(&mut self, batch: Batch, out: &mut dyn Write) -> fmt::Result {
        let more = batch.missed.total().saturating_sub(self.missed.total());
        self.missed = batch.missed;
        self.names.extend(batch.functions, batch.threads);
        self.merge.push(batch.records);
        // What is told now is of the batch before: what is missed stands between the two.
        self.tell(out)?;
        if more != 0 { self.form.missed(more, out) } else { Ok(()) }
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// Only those of `out`.
    pub fn end(mut self, out: &mut dyn Write) -> fmt::Result {
        self.merge.close();
        self.tell(out)?;
        self.form.end(&self.names, &self.missed, out)
    }

    fn tell(&mut self, out: &mut dyn Write) -> fmt::Result {
        while let Some((record, next)) = self.merge.next() {
            self.form.record(&record, next, &self.names, out)?;
        }
        Ok(())
    }
}

impl Form {
    /// Tells a whole recording, batch after batch.
    #[must_use]
    pub fn whole(self, process: &Process, batches: impl IntoIterator<Item = Batch>) -> String {
        let mut text = String::new();
        let told = Renderer::begin(self, process, &mut text).and_then(|mut renderer| {
            batches.into_iter().try_for_each(|batch| renderer.batch(batch, &mut text))?;
            renderer.end(&mut text)
        });
        debug_assert_eq!(told, Ok(()), "a String takes whatever is written");
        text
    }
}
