//! Recordings of the functions that a filter selects: from rings to batches. Only one recording can be under way at a
//! time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use modload_edit::Addr;
use modload_text::has_shadow_stack;

use crate::clock::Clock;
use crate::error::TraceError;
use crate::filter::{BadPattern, Filter, Pattern};
use crate::identity::TraceHostId;
use crate::running::{PendingRecord, RunningRecording};
use crate::table::{TraceTable, table};
use crate::trace::{Batch, Missed, Record, RecordedThread, ThreadAction, TracedFunction};
use crate::trampoline::attach::take_new_threads;
use crate::trampoline::process_state::{CURRENT_SESSION, NESTED_CALLS, NO_SESSION, RING_BYTES, UNATTACHED_CALLS};
use crate::trampoline::ring::{CALL, ENTER, LEAVE};
use crate::trampoline::variants::AfterTracers;
use crate::trampoline::{FunctionRecord, walk_stack};

/// The events of a function that are recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The calls of the function, and their origins: Linux's `function` tracer.
    Calls,
    /// The entries and returns of the function: Linux's `function_graph`.
    Graph,
}

/// The options of a recording.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    mode: Mode,
    patterns: Vec<Pattern>,
    buffer: u64,
}

impl TraceOptions {
    /// Selects all functions, with a buffer of 1 MiB for each thread.
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

    /// Sets the size in bytes of each thread's buffer, rounded up to a power of two. An entry and a return take 16
    /// bytes each, a call 32.
    #[must_use]
    pub fn buffer(self, bytes: u64) -> TraceOptions {
        TraceOptions { buffer: bytes, ..self }
    }
}

/// The limits for the size of a ring.
const LEAST: u64 = 4096;
const MOST: u64 = 1 << 30;

/// The most pending records. Beyond that, `name_parents` leaves records in the rings. Threads drop records that do not
/// fit into their rings, and count them.
const MOST_PENDING: usize = 1 << 22;

/// Returns the number of the next recording.
fn next_session(table: &mut TraceTable) -> u32 {
    table.last_session = if table.last_session >= NO_SESSION - 2 { 1 } else { table.last_session + 1 };
    table.last_session
}

/// Starts a recording. Returns its number and its clock.
pub(crate) fn start(host: TraceHostId, options: &TraceOptions) -> Result<(u32, Clock), TraceError> {
    if !(LEAST..=MOST).contains(&options.buffer) {
        return Err(TraceError::Buffer { bytes: options.buffer });
    }
    let then = match options.mode {
        Mode::Calls => AfterTracers::Record,
        Mode::Graph if has_shadow_stack() => return Err(TraceError::ShadowStack),
        Mode::Graph => {
            walk_stack::find_thread_starts();
            AfterTracers::Graph
        }
    };
    let clock = Clock::start().ok_or(TraceError::NoClock)?;
    let mut table = table();
    if table.running.is_some() {
        return Err(TraceError::UnderWay);
    }
    let filter: Filter = options.patterns.iter().cloned().collect();
    let session = next_session(&mut table);
    RING_BYTES.store(options.buffer.next_power_of_two(), Ordering::Release);
    // The session is stored before a site leads to the recording code: each thread that reaches that code takes part.
    CURRENT_SESSION.store(session, Ordering::SeqCst);
    let changed = table.set_recorded(then, |module, entry| filter.matches(module, &entry.site.name), host);
    table.running = Some(RunningRecording {
        host,
        filter,
        then,
        session,
        pending: Vec::new(),
        threads: Vec::new(),
        numbers: HashMap::new(),
        missed: Missed::default(),
        nested: NESTED_CALLS.load(Ordering::Relaxed),
        unattached: UNATTACHED_CALLS.load(Ordering::Relaxed),
    });
    if let Err(error) = table.switch(&changed) {
        table.stop(session);
        // No `FunctionTrace` exists that would do this when it is dropped.
        table.running = None;
        return Err(error);
    }
    Ok((session, clock))
}

impl TraceTable {
    /// Ends the recording. Records that threads are about to write are lost.
    fn stop(&mut self, session: u32) {
        let Some(host) = self.running.as_ref().filter(|running| running.session == session).map(|one| one.host) else {
            return;
        };
        let changed = self.set_recorded(AfterTracers::Function, |_, _| true, host);
        if let Err(error) = self.switch(&changed) {
            // These sites lead to stubs of functions that are not traced any more.
            tracing::warn!(%error, "a recording has ended, but its call sites could not be changed back");
        }
        CURRENT_SESSION.store(NO_SESSION, Ordering::SeqCst);
        self.read_rings(|_| None);
    }

    /// Names the parents of recorded calls from a module, part of which is about to be unloaded. Functions keep their
    /// names.
    pub(crate) fn name_parents(&mut self, parent: impl Fn(Addr) -> Option<String>) {
        let names =
            |running: &RunningRecording| running.then == AfterTracers::Record && running.pending.len() < MOST_PENDING;
        if self.running.as_ref().is_none_or(names) {
            self.read_rings(parent);
        }
    }

    /// Reads the records of all threads. `parent` names places in a module that is about to be unloaded.
    pub(crate) fn read_rings(&mut self, parent: impl Fn(Addr) -> Option<String>) {
        self.readers.extend(take_new_threads());
        let Some(running) = &mut self.running else {
            for ended in self.readers.extract_if(.., |reader| reader.has_ended()) {
                ended.free();
            }
            return;
        };
        for reader in &mut self.readers {
            // The end is checked before the ring is read: all records from before the end are read, and then the ring
            // is freed.
            let ended = reader.has_ended();
            if reader.session() == running.session {
                let number = running.number(reader.key(), reader.tid(), || reader.name());
                let pending = &mut running.pending;
                reader.take(|record| pending.push(PendingRecord { thread: number, record, parent: None }));
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
            running.pending.iter_mut().filter(|pending| pending.record.what == CALL && pending.parent.is_none());
        unnamed.for_each(|pending| pending.parent = parent(Addr::new(pending.record.parent)));
    }
}

/// A recording under way. Dropping it ends the recording.
pub struct FunctionTrace {
    session: u32,
    clock: Clock,
    name: Arc<dyn Fn(Addr) -> Option<String> + Send + Sync>,
    /// The functions that batches have named, by their numbers in the process.
    functions: HashMap<u32, u32>,
    /// The number of threads that batches have named.
    threads: usize,
}

impl std::fmt::Debug for FunctionTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionTrace").field("session", &self.session).finish_non_exhaustive()
    }
}

impl FunctionTrace {
    /// Starts a recording. `name` returns the name of the function that contains a return address.
    pub(crate) fn start(
        host: TraceHostId,
        options: &TraceOptions,
        name: Arc<dyn Fn(Addr) -> Option<String> + Send + Sync>,
    ) -> Result<FunctionTrace, TraceError> {
        let (session, clock) = start(host, options)?;
        Ok(FunctionTrace { session, clock, name, functions: HashMap::new(), threads: 0 })
    }

    /// Returns the records since the last call of this function.
    #[must_use = "the records are not returned again"]
    pub fn drain(&mut self) -> Batch {
        let (pending, threads, missed, functions) = {
            let mut table = table();
            table.read_rings(|_| None);
            table.take(self.session, self.threads)
        };
        self.threads += threads.len();
        let mut batch = Batch { threads, missed, records: Vec::with_capacity(pending.len()), ..Batch::default() };
        for PendingRecord { thread, record, parent } in pending {
            let known = wide(self.functions.len());
            let function = *self.functions.entry(record.number).or_insert_with(|| {
                let function = functions.get(usize::try_from(record.number).unwrap_or(usize::MAX));
                let (module, name) = function.map_or(("?", "?"), |function| (&*function.module, &*function.name));
                batch.functions.push(TracedFunction { module: module.to_owned(), name: name.to_owned() });
                known
            });
            let what = match record.what {
                ENTER => ThreadAction::Enter,
                LEAVE => ThreadAction::Leave,
                CALL => {
                    let at = Addr::new(record.parent);
                    let named = parent.or_else(|| (self.name)(at));
                    ThreadAction::Call { parent: named.unwrap_or_else(|| at.to_string()) }
                }
                _ => ThreadAction::Unwound,
            };
            batch.records.push(Record { thread, at: self.clock.nanoseconds(record.time), function, what });
        }
        batch
    }

    /// Ends the recording. Returns the records since the last call of [`FunctionTrace::drain`]. Functions that threads
    /// are still in have no end in the records.
    #[must_use = "the records are not returned again"]
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

impl TraceTable {
    /// Returns the new part of a recording: records, threads from this number on, missed calls, and all functions.
    fn take(
        &mut self,
        session: u32,
        threads: usize,
    ) -> (Vec<PendingRecord>, Vec<RecordedThread>, Missed, Vec<&'static FunctionRecord>) {
        let Some(running) = self.running.as_mut().filter(|running| running.session == session) else {
            return Default::default();
        };
        let mut missed = running.missed;
        for reader in self.readers.iter().filter(|reader| reader.session() == session) {
            missed.add(&reader.counts());
        }
        missed.nested += NESTED_CALLS.load(Ordering::Relaxed) - running.nested;
        missed.elsewhere += UNATTACHED_CALLS.load(Ordering::Relaxed) - running.unattached;
        let new = running.threads.get(threads..).unwrap_or_default().to_vec();
        (std::mem::take(&mut running.pending), new, missed, self.functions.clone())
    }
}
