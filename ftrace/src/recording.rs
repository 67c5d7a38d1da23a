//! Recordings: one at a time, of the functions that a filter means, from rings to batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use modload_edit::Addr;
use modload_text::shadow_stacks;

use crate::clock::Clock;
use crate::error::TraceError;
use crate::filter::{BadPattern, Filter, Pattern};
use crate::table::{HostId, Table, table};
use crate::trace::{Batch, Function, Missed, Record, Thread, What};
use crate::trampoline::aside;
use crate::trampoline::ring::{CALL, ENTER, LEAVE, Told};
use crate::trampoline::sets::Then;
use crate::trampoline::thread::{self, CURRENT, NESTED, OFF, RING, STRANGERS};

/// What is recorded of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Its calls, and where they come from: Linux's `function` tracer.
    Calls,
    /// Its entries and its returns: Linux's `function_graph`.
    Graph,
}

/// What is to be recorded, and how.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    mode: Mode,
    patterns: Vec<Pattern>,
    buffer: u64,
}

impl TraceOptions {
    /// All functions, with a buffer of 1 MiB for each thread.
    #[must_use]
    pub fn new(mode: Mode) -> TraceOptions {
        TraceOptions { mode, patterns: Vec::new(), buffer: 1 << 20 }
    }

    /// Adds a pattern: [`Pattern`].
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn pattern(mut self, pattern: &str) -> Result<TraceOptions, BadPattern> {
        self.patterns.push(pattern.parse()?);
        Ok(self)
    }

    /// How many bytes each thread's buffer has: a power of two is made of it. An entry and a return take 16 bytes each, a call 32.
    #[must_use]
    pub fn buffer(self, bytes: u64) -> TraceOptions {
        TraceOptions { buffer: bytes, ..self }
    }
}

/// The recording under way, as the table knows it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) host: HostId,
    pub(crate) filter: Filter,
    pub(crate) then: Then,
    session: u32,
    /// What was read of rings and told to nobody yet; by thread in order.
    pending: Vec<Pending>,
    /// The threads, by their numbers in the recording.
    threads: Vec<Thread>,
    /// The number of each reader's thread, by the address of its state.
    numbers: HashMap<usize, u32>,
    /// What threads that have ended had missed.
    missed: Missed,
    /// What was counted for the whole process when it began.
    nested: u64,
    strangers: u64,
}

/// What a thread has recorded.
#[derive(Debug)]
struct Pending {
    thread: u32,
    told: Told,
    /// Its parent by name, when that was known by a module that is gone now.
    parent: Option<String>,
}

/// The ends of what a ring may be.
const LEAST: u64 = 4096;
const MOST: u64 = 1 << 30;

/// When so many records wait to be told, those in rings wait there: what does not fit is dropped by the threads, and counted.
const MOST_PENDING: usize = 1 << 22;

/// The one after the recording that was last.
fn next_session(table: &mut Table) -> u32 {
    table.last_session = if table.last_session >= OFF - 2 { 1 } else { table.last_session + 1 };
    table.last_session
}

/// Begins a recording; says its number.
pub(crate) fn start(host: HostId, options: &TraceOptions) -> Result<(u32, Clock), TraceError> {
    if !(LEAST..=MOST).contains(&options.buffer) {
        return Err(TraceError::Buffer { bytes: options.buffer });
    }
    let then = match options.mode {
        Mode::Calls => Then::Record,
        Mode::Graph if shadow_stacks() => return Err(TraceError::ShadowStack),
        Mode::Graph => {
            aside::know_starts();
            Then::Graph
        }
    };
    let clock = Clock::start().ok_or(TraceError::NoClock)?;
    let mut table = table();
    if table.running.is_some() {
        return Err(TraceError::UnderWay);
    }
    let filter: Filter = options.patterns.iter().cloned().collect();
    let session = next_session(&mut table);
    RING.store(options.buffer.next_power_of_two(), Ordering::Release);
    // Before a site leads there: whoever comes takes part.
    CURRENT.store(session, Ordering::SeqCst);
    let changed = table.record(then, |module, entry| filter.matches(module, &entry.site.name), host);
    table.running = Some(Running {
        host,
        filter,
        then,
        session,
        pending: Vec::new(),
        threads: Vec::new(),
        numbers: HashMap::new(),
        missed: Missed::default(),
        nested: NESTED.load(Ordering::Relaxed),
        strangers: STRANGERS.load(Ordering::Relaxed),
    });
    if let Err(error) = table.switch(&changed) {
        table.stop(session);
        return Err(error);
    }
    Ok((session, clock))
}

impl Table {
    /// Records nothing any more. What threads are about to write is lost.
    fn stop(&mut self, session: u32) {
        let Some(host) = self.running.as_ref().filter(|running| running.session == session).map(|one| one.host) else {
            return;
        };
        let changed = self.record(Then::Function, |_, _| true, host);
        if let Err(error) = self.switch(&changed) {
            // They lead to stubs of functions that nobody looks at.
            tracing::warn!(%error, "recording has ended, and sites stay as they are");
        }
        CURRENT.store(OFF, Ordering::SeqCst);
        self.read_rings(|_| None);
    }

    /// Part of a module is about to go: calls that came from there get their names now. Functions keep theirs.
    pub(crate) fn name_parents(&mut self, parent: impl Fn(Addr) -> Option<String>) {
        let names = |running: &Running| running.then == Then::Record && running.pending.len() < MOST_PENDING;
        if self.running.as_ref().is_none_or(names) {
            self.read_rings(parent);
        }
    }

    /// Reads what threads have recorded; `parent` names places of a module that is about to go.
    pub(crate) fn read_rings(&mut self, parent: impl Fn(Addr) -> Option<String>) {
        self.readers.extend(thread::take_new());
        let Some(running) = &mut self.running else {
            for ended in self.readers.extract_if(.., |reader| reader.has_ended()) {
                ended.free();
            }
            return;
        };
        for reader in &mut self.readers {
            // Before its ring: what it wrote before it ended is read, and then it is free.
            let ended = reader.has_ended();
            if reader.session() == running.session {
                let number = running.number(reader.key(), reader.tid(), || reader.name());
                let pending = &mut running.pending;
                reader.take(|told| pending.push(Pending { thread: number, told, parent: None }));
            }
            reader.set_done(ended);
        }
        for ended in self.readers.extract_if(.., |reader| reader.is_done()) {
            if ended.session() == running.session {
                running.missed.add(&ended.counts());
            }
            running.numbers.remove(&ended.key());
            ended.free();
        }
        let unnamed =
            running.pending.iter_mut().filter(|pending| pending.told.what == CALL && pending.parent.is_none());
        unnamed.for_each(|pending| pending.parent = parent(Addr::new(pending.told.parent)));
    }
}

impl Running {
    fn number(&mut self, key: usize, tid: i32, name: impl Fn() -> String) -> u32 {
        *self.numbers.entry(key).or_insert_with(|| {
            self.threads.push(Thread { tid, name: name() });
            u32::try_from(self.threads.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

impl Missed {
    fn add(&mut self, counts: &crate::trampoline::ring::Counts) {
        self.dropped += counts.dropped;
        self.deep += counts.deep;
        self.elsewhere += counts.elsewhere;
    }
}

/// A recording under way. Dropping it ends it.
pub struct FunctionTrace {
    session: u32,
    clock: Clock,
    name: Arc<dyn Fn(Addr) -> Option<String> + Send + Sync>,
    /// Functions that have been told of, by their numbers in the process.
    functions: HashMap<u32, u32>,
    /// How many threads have been told of.
    threads: usize,
}

impl std::fmt::Debug for FunctionTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionTrace").field("session", &self.session).finish_non_exhaustive()
    }
}

impl FunctionTrace {
    /// Begins one. `name` names return addresses.
    pub(crate) fn start(
        host: HostId,
        options: &TraceOptions,
        name: Arc<dyn Fn(Addr) -> Option<String> + Send + Sync>,
    ) -> Result<FunctionTrace, TraceError> {
        let (session, clock) = start(host, options)?;
        Ok(FunctionTrace { session, clock, name, functions: HashMap::new(), threads: 0 })
    }

    /// What has been recorded since this was called last.
    #[must_use = "what is taken is not told again"]
    pub fn drain(&mut self) -> Batch {
        let (pending, threads, missed, functions) = {
            let mut table = table();
            table.read_rings(|_| None);
            table.take(self.session, self.threads)
        };
        self.threads += threads.len();
        let mut batch = Batch { threads, missed, records: Vec::with_capacity(pending.len()), ..Batch::default() };
        for Pending { thread, told, parent } in pending {
            let known = wide(self.functions.len());
            let function = *self.functions.entry(told.number).or_insert_with(|| {
                let function = functions.get(usize::try_from(told.number).unwrap_or(usize::MAX));
                let (module, name) = function.map_or(("?", "?"), |function| (&*function.module, &*function.name));
                batch.functions.push(Function { module: module.to_owned(), name: name.to_owned() });
                known
            });
            let what = match told.what {
                ENTER => What::Enter,
                LEAVE => What::Leave,
                CALL => {
                    let at = Addr::new(told.parent);
                    let named = parent.or_else(|| (self.name)(at));
                    What::Call { parent: named.unwrap_or_else(|| at.to_string()) }
                }
                _ => What::Unwound,
            };
            batch.records.push(Record { thread, at: self.clock.nanoseconds(told.time), function, what });
        }
        batch
    }

    /// Ends it; what has been recorded since [`FunctionTrace::drain`] was called last. Functions that threads are still in have no
    /// end.
    #[must_use = "what is taken is not told again"]
    pub fn finish(mut self) -> Batch {
        table().stop(self.session);
        self.drain()
    }
}

impl Drop for FunctionTrace {
    fn drop(&mut self) {
        let mut table = table();
        if table.running.as_ref().is_some_and(|running| running.session == self.session) {
            table.stop(self.session);
            table.running = None;
        }
    }
}

fn wide(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Table {
    /// What a recording has that was not told yet: records, threads from this number on, what was missed, and all functions.
    fn take(
        &mut self,
        session: u32,
        threads: usize,
    ) -> (Vec<Pending>, Vec<Thread>, Missed, Vec<&'static crate::trampoline::Function>) {
        let Some(running) = self.running.as_mut().filter(|running| running.session == session) else {
            return Default::default();
        };
        let mut missed = running.missed;
        for reader in self.readers.iter().filter(|reader| reader.session() == session) {
            missed.add(&reader.counts());
        }
        missed.nested += NESTED.load(Ordering::Relaxed) - running.nested;
        missed.elsewhere += STRANGERS.load(Ordering::Relaxed) - running.strangers;
        let new = running.threads.get(threads..).unwrap_or_default().to_vec();
        (std::mem::take(&mut running.pending), new, missed, self.functions.clone())
    }
}
