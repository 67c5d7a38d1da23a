//! Who has rows for which addresses: read without a lock while entries come and go.
//!
//! The index is two levels of sorted arrays that never change once they can be seen. Who adds or withdraws an entry
//! makes a new array of its neighbours and a new array of all arrays, and swaps one pointer: of n entries that is about
//! n / 64 + 64 words, so that 10,000 modules do not pay for each other. A reader counts itself before it looks at the
//! pointer. There are two counters; a writer that has swapped the pointer has new readers count in the other one, and
//! waits until the first is zero. From then on nobody can see the old arrays, or the entry that was withdrawn.
//!
//! Readers never wait, and may be signal handlers that have interrupted a writer. A writer waits for the length of the
//! walks that are under way, and so must not be called from within one, or while threads are held that may be in one.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use thiserror::Error;

use super::libgcc::{self, Registered};
use super::listing::Listing;

/// Rows for a range of addresses.
#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    end: u64,
    /// Owned by the guard of this range, and freed when no reader can see the entry.
    rows: *const Listing,
}

/// Entries that lie side by side, by address.
type Chunk = Vec<Entry>;

/// Chunks by the start of their first entry. None is empty.
type Index = Vec<(u64, *mut Chunk)>;

/// A chunk that would be longer becomes two.
const CHUNK: usize = 64;

/// What readers see. Null as long as there has been no entry.
static CURRENT: AtomicPtr<Index> = AtomicPtr::new(ptr::null_mut());

/// In which of the two counters new readers count themselves.
static PHASE: AtomicUsize = AtomicUsize::new(0);
static READERS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

static WRITER: Mutex<()> = Mutex::new(());

fn writer() -> MutexGuard<'static, ()> {
    WRITER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows for an address are known already.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("rows for {start:#x} to {end:#x} are known already")]
pub struct Overlap {
    /// The first address of those that are known.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
}

/// Rows that walks find. Dropping it withdraws them: when that returns, no walk uses them any more.
///
/// To be dropped before the code can be used for something else, and neither within a walk nor while threads are held
/// that may be in one.
pub struct Known {
    start: u64,
    rows: *mut Listing,
    /// Where the process's unwinder is told of them, too. It reads the rows, and so it goes first.
    registered: Option<Registered>,
}

// SAFETY: the rows are never written, and freed by the one guard.
unsafe impl Send for Known {}
// SAFETY: a shared guard gives access to nothing.
unsafe impl Sync for Known {}

impl Known {
    /// Adds rows for a range that nobody has rows for.
    pub(crate) fn new(code: Range<u64>, rows: Listing) -> Result<Known, Overlap> {
        let start = code.start;
        let _writer = writer();
        let old = Current::get();
        let at = old.chunk(start);
        let neighbours = at.map_or(&[][..], |at| old.entries(at));
        let place = neighbours.partition_point(|entry| entry.start <= start);
        let behind = neighbours.get(place).or_else(|| at.and_then(|at| old.entries(at + 1).first()));
        let before = place.checked_sub(1).map(|before| &neighbours[before]);
        let overlaps = |entry: &&Entry| entry.start < code.end.max(start + 1) && start < entry.end;
        if let Some(known) = before.into_iter().chain(behind).find(overlaps) {
            return Err(Overlap { start: known.start, end: known.end });
        }
        let rows = Box::into_raw(Box::new(rows));
        let mut chunk = Chunk::with_capacity(neighbours.len() + 1);
        chunk.extend_from_slice(&neighbours[..place]);
        chunk.push(Entry { start, end: code.end, rows });
        chunk.extend_from_slice(&neighbours[place..]);
        let second = (chunk.len() > CHUNK).then(|| chunk.split_off(CHUNK / 2));
        old.replace(at, [Some(chunk), second]);
        Ok(Known { start, rows, registered: None })
    }

    /// Has the guard withdraw this as well, before anything else.
    pub(crate) fn and_registered(mut self, registered: Registered) -> Known {
        self.registered = Some(registered);
        self
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        drop(self.registered.take());
        {
            let _writer = writer();
            let old = Current::get();
            let Some(at) = old.chunk(self.start) else { return };
            let chunk: Chunk = old.entries(at).iter().filter(|entry| entry.start != self.start).copied().collect();
            old.replace(Some(at), [Some(chunk).filter(|chunk| !chunk.is_empty()), None]);
        }
        // SAFETY: made by Box::into_raw in `new`. The entry that pointed to it was taken out of the index, and
        // `replace` has waited for every reader that could have seen it there.
        drop(unsafe { Box::from_raw(self.rows) });
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({:#x})", self.start)
    }
}

/// The index as it is, in the hands of the one writer.
struct Current {
    index: *mut Index,
}

impl Current {
    /// To be called by who holds the writer's lock.
    fn get() -> Current {
        Current { index: CURRENT.load(Ordering::Acquire) }
    }

    fn chunks(&self) -> &[(u64, *mut Chunk)] {
        // SAFETY: null, or made by Box::into_raw in `replace`; only a writer frees it, and that is us.
        unsafe { self.index.as_ref() }.map_or(&[], Vec::as_slice)
    }

    /// The chunk that an address belongs to; none if there is no chunk.
    fn chunk(&self, start: u64) -> Option<usize> {
        let chunks = self.chunks();
        let behind = chunks.partition_point(|(first, _)| *first <= start);
        (!chunks.is_empty()).then(|| behind.saturating_sub(1))
    }

    /// The entries of a chunk; none if there is no such chunk.
    fn entries(&self, chunk: usize) -> &[Entry] {
        let Some((_, chunk)) = self.chunks().get(chunk) else { return &[] };
        // SAFETY: made by Box::into_raw in `replace`; only a writer frees it, and that is us.
        unsafe { &**chunk }
    }

    /// Has readers see these chunks in the place of one (or as the first), waits until nobody sees the old one any
    /// more, and frees it.
    fn replace(self, at: Option<usize>, with: [Option<Chunk>; 2]) {
        let chunks = self.chunks();
        let at = at.map_or(0..0, |at| at..at + 1);
        let boxed = |chunk: Chunk| (chunk.first().map_or(0, |entry| entry.start), Box::into_raw(Box::new(chunk)));
        let mut index = Index::with_capacity(chunks.len() + 1);
        index.extend_from_slice(&chunks[..at.start]);
        index.extend(with.into_iter().flatten().map(boxed));
        index.extend_from_slice(&chunks[at.end..]);
        let replaced = chunks[at].first().map(|(_, chunk)| *chunk);
        CURRENT.store(Box::into_raw(Box::new(index)), Ordering::SeqCst);
        wait_for_readers();
        if let Some(chunk) = replaced {
            // SAFETY: made by Box::into_raw above, in an earlier call. It was in the old index alone, and every reader
            // that can have seen that is done.
            drop(unsafe { Box::from_raw(chunk) });
        }
        if !self.index.is_null() {
            // SAFETY: the same.
            drop(unsafe { Box::from_raw(self.index) });
        }
    }
}

/// Returns when every reader that counted itself before the call is done. By the holder of the writer's lock.
fn wait_for_readers() {
    let old = PHASE.load(Ordering::Relaxed);
    // A reader that finds this new phase looks at CURRENT later, and so sees what was stored before.
    PHASE.store(1 - old, Ordering::SeqCst);
    while READERS[old].load(Ordering::SeqCst) != 0 {
        // A reader that another thread has interrupted, or that waits for this processor.
        std::thread::yield_now();
    }
}

/// Someone who looks at the index. What it has found stays until this is dropped.
pub(crate) struct Reading {
    phase: usize,
    index: *const Index,
}

impl Reading {
    pub(crate) fn begin() -> Reading {
        loop {
            let phase = PHASE.load(Ordering::SeqCst);
            READERS[phase].fetch_add(1, Ordering::SeqCst);
            // Counted in a phase that has ended, nobody would wait for us.
            if PHASE.load(Ordering::SeqCst) == phase {
                return Reading { phase, index: CURRENT.load(Ordering::SeqCst) };
            }
            READERS[phase].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The rows that are known for an address.
    pub(crate) fn find(&self, at: u64) -> Option<&Listing> {
        // SAFETY: null, or made by a writer, which waits for us before it frees it.
        let chunks = unsafe { self.index.as_ref() }?;
        let behind = chunks.partition_point(|(first, _)| *first <= at);
        let (_, chunk) = chunks.get(behind.checked_sub(1)?)?;
        // SAFETY: the same holds for each chunk of an index.
        let entries = unsafe { &**chunk };
        let behind = entries.partition_point(|entry| entry.start <= at);
        let entry = entries.get(behind.checked_sub(1)?)?;
        // SAFETY: freed by the guard, when a writer has taken the entry out and has waited for us.
        (at < entry.end).then(|| unsafe { &*entry.rows })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        READERS[self.phase].fetch_sub(1, Ordering::SeqCst);
    }
}

thread_local! {
    static OVER_FORK: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Fork waits for a writer; the child has no readers but those of its own thread, of which there are none.
///
/// Rows are made known by who has locks of his own. Who holds those over a fork calls this before he calls `pthread_atfork`: who
/// came first prepares last, and nobody holds this lock while he waits for another.
///
/// # Errors
/// `pthread_atfork` has no memory.
pub fn install_fork_handlers() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    // SAFETY: the three functions are `extern "C"`, take nothing, and live as long as the program.
    let failed = *INSTALLED.get_or_init(|| unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) });
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

extern "C" fn prepare() {
    OVER_FORK.set(Some(writer()));
    libgcc::before_fork();
}

extern "C" fn parent() {
    libgcc::after_fork();
    drop(OVER_FORK.take());
}

extern "C" fn child() {
    libgcc::after_fork();
    for readers in &READERS {
        readers.store(0, Ordering::SeqCst);
    }
    drop(OVER_FORK.take());
}
