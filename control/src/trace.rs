//! Traces functions for a client, one batch after the other, until the time is over or the client sends anything.
//!
//! This module queues nothing. While a client does not read, the buffers are not drained, and the traced threads count
//! the records that they drop. A client that does not read for [`crate::protocol::WRITE_TIME`] is treated as gone, and
//! its trace ends.

use std::time::{Duration, Instant};

use modload::Host;
use modload::trace::{Batch, Missed};
use modload::trace::{Filter, Mode, Pattern, TraceOptions, Traceable};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::error::RequestRefusal;
use crate::operation::Operation;
use crate::protocol::{TRACE_LINE, TraceMode, TraceRequest, TraceStarted, TraceableFunction, Traced};

/// The interval at which the threads' buffers are drained.
const TURN: Duration = Duration::from_millis(100);

impl Operation<'_> {
    /// Traces until the end. Bytes that the client has sent by then are its next request.
    pub(crate) fn trace(&self, asked: &TraceRequest) -> Result<Traced, RequestRefusal> {
        let host = &self.shared.host;
        let (options, filter) = (options(asked)?, filter(&asked.patterns)?);
        // A time beyond the range of the clock means no limit.
        let until = asked.seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        let mut trace = host.trace_functions(&options)?;
        self.say_tracing(&filter);
        let mut sent = LastSent::default();
        while self.goes_on(until) {
            self.say_batch(trace.drain(), &mut sent);
        }
        self.say_batch(trace.finish(), &mut sent);
        Ok(Traced { missed: sent.missed })
    }

    /// Waits for the next interval. Returns `false` if the trace ends.
    fn goes_on(&self, until: Option<Instant>) -> bool {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if self.more_came || self.answers.is_gone() || self.shared.is_stopping() || left == Some(Duration::ZERO) {
            return false;
        }
        let turn = left.map_or(TURN, |left| left.min(TURN));
        // A request, the end of the client's side and a stopping server, which closes this side, all make the socket
        // readable.
        let stream = self.answers.as_fd();
        let mut fds = [PollFd::from_borrowed_fd(stream, PollFlags::IN | PollFlags::RDHUP)];
        let timeout = Timespec::try_from(turn).ok();
        // An interrupted wait only makes the interval shorter.
        poll(&mut fds, timeout.as_ref()).is_err() || fds[0].revents().is_empty()
    }

    /// Tells the client that tracing has begun, in which process, and how many functions match now.
    fn say_tracing(&self, filter: &Filter) {
        let wanted = matching_functions(&self.shared.host, filter);
        let functions = wanted.filter(|traceable| traceable.why_not.is_none()).count();
        let tracing = TraceStarted { pid: std::process::id(), process: process_name(), functions };
        let text = format!("tracing {functions} functions of {} ({})", tracing.process, tracing.pid);
        let mut event = json!(tracing);
        event["event"] = "tracing".into();
        self.answers.say(&json!({ "id": self.id, "event": event, "text": text }));
    }

    /// Sends the records of a drain, in lines of limited length. An empty batch is sent only after one that was not
    /// empty: it tells the client that no older records follow.
    fn say_batch(&self, batch: Batch, sent: &mut LastSent) {
        let news = !batch.records.is_empty() || batch.missed != sent.missed;
        sent.missed = batch.missed;
        if !std::mem::replace(&mut sent.news, news) && !news {
            return;
        }
        let mut parts = parts(batch).peekable();
        while let Some(part) = parts.next() {
            let mut line = json!({ "id": self.id, "trace": part });
            if parts.peek().is_some() {
                line["more"] = true.into();
            }
            self.answers.say(&line);
        }
    }
}

/// The latest state that the client knows.
#[derive(Default)]
struct LastSent {
    news: bool,
    missed: Missed,
}

/// Returns the functions that match the patterns, and whether each can be traced.
pub(crate) fn traceable(host: &Host, patterns: &[String]) -> Result<Vec<TraceableFunction>, RequestRefusal> {
    let filter = filter(patterns)?;
    let listed = |Traceable { function, why_not, why_no_returns }| TraceableFunction {
        function,
        why_not,
        why_no_returns: why_no_returns.map(str::to_owned),
    };
    Ok(matching_functions(host, &filter).map(listed).collect())
}

fn matching_functions(host: &Host, filter: &Filter) -> impl Iterator<Item = Traceable> {
    let all = host.traceable().into_iter();
    all.filter(|Traceable { function, .. }| filter.matches(&function.module, &function.name))
}

fn filter(patterns: &[String]) -> Result<Filter, RequestRefusal> {
    let patterns = patterns.iter().map(|pattern| pattern.parse::<Pattern>());
    Ok(patterns.collect::<Result<Filter, _>>()?)
}

fn options(asked: &TraceRequest) -> Result<TraceOptions, RequestRefusal> {
    let options = TraceOptions::new(match asked.mode {
        TraceMode::Calls => Mode::Calls,
        TraceMode::Graph => Mode::Graph,
    });
    let options = asked.patterns.iter().try_fold(options, |options, pattern| options.pattern(pattern))?;
    Ok(asked.buffer.into_iter().fold(options, TraceOptions::buffer))
}

/// Returns the name of the process, as shown by ps(1).
fn process_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    name.trim_end_matches('\n').escape_debug().to_string()
}

/// Splits a batch into parts of about [`TRACE_LINE`] bytes of JSON each: names first, then records, in order. Returns
/// at least one part. A name that is longer than a line becomes a part of its own.
fn parts(batch: Batch) -> impl Iterator<Item = Batch> {
    let Batch { functions, threads, records, missed } = batch;
    let (mut functions, mut threads, mut records) =
        (functions.into_iter().peekable(), threads.into_iter().peekable(), records.into_iter().peekable());
    let mut first = true;
    std::iter::from_fn(move || {
        let mut room = LineRoom(TRACE_LINE);
        let part = Batch {
            functions: room.take(&mut functions, |function| text(&function.module) + text(&function.name)),
            threads: room.take(&mut threads, |thread| text(&thread.name)),
            records: room.take(&mut records, |record| match &record.what {
                modload::trace::ThreadAction::Call { parent } => text(parent),
                _ => 0,
            }),
            missed,
        };
        let empty = part.functions.is_empty() && part.threads.is_empty() && part.records.is_empty();
        (std::mem::take(&mut first) || !empty).then_some(part)
    })
}

/// Returns the maximum length of a string in JSON: each byte may become an escape of six bytes.
fn text(text: &str) -> usize {
    6 * text.len()
}

/// The number of bytes left in a line.
struct LineRoom(usize);

impl LineRoom {
    /// More bytes than the keys and numbers of any item take in JSON.
    const ITEM: usize = 128;

    fn take<T>(
        &mut self,
        items: &mut std::iter::Peekable<impl Iterator<Item = T>>,
        texts: impl Fn(&T) -> usize,
    ) -> Vec<T> {
        let mut taken = Vec::new();
        while let Some(needed) = items.peek().map(|item| LineRoom::ITEM + texts(item)) {
            // An item that does not fit even into an empty line is sent alone.
            if needed > self.0 && self.0 < TRACE_LINE {
                // Later items must not overtake this one.
                self.0 = 0;
                break;
            }
            self.0 = self.0.saturating_sub(needed);
            taken.extend(items.next());
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use modload::trace::{Batch, Missed, Record, RecordedThread, ThreadAction, TracedFunction};

    use super::{TRACE_LINE, parts};
    use crate::client::join;

    fn check(batch: &Batch, longest: usize) -> usize {
        let parts: Vec<Batch> = parts(batch.clone()).collect();
        let mut joined = Batch::default();
        for part in parts.iter().cloned() {
            join(&mut joined, part);
        }
        assert_eq!(&joined, batch);
        for part in &parts {
            let length = serde_json::to_string(part).unwrap().len();
            assert!(length <= longest, "{length}");
        }
        parts.len()
    }

    #[test]
    fn a_batch_of_any_size_goes_in_lines_that_are_not_too_long() {
        assert_eq!(check(&Batch::default(), TRACE_LINE), 1);
        let missed = Missed { dropped: 3, ..Missed::default() };
        assert_eq!(check(&Batch { missed, ..Batch::default() }, TRACE_LINE), 1);

        let name = "\u{1}\"\\".repeat(100);
        let function = |number: u32| TracedFunction { module: format!("m{number}"), name: name.clone() };
        let thread = |tid| RecordedThread { tid, name: name.clone() };
        let record = |number: u32| Record {
            thread: u32::MAX,
            at: u64::MAX,
            function: number,
            what: if number.is_multiple_of(2) {
                ThreadAction::Unwound
            } else {
                ThreadAction::Call { parent: name.clone() }
            },
        };
        let batch = Batch {
            functions: (0..3000).map(function).collect(),
            threads: (0..3000).map(thread).collect(),
            records: (0..10_000).map(record).collect(),
            missed,
        };
        assert!(check(&batch, TRACE_LINE) > 5);

        // One that is too long for a line of its kind stands alone.
        let huge = TracedFunction { module: "m".into(), name: "x".repeat(TRACE_LINE) };
        let batch = Batch { functions: vec![function(0), huge.clone(), function(1), huge], ..Batch::default() };
        assert_eq!(check(&batch, TRACE_LINE + 1000), 4);
    }
}
