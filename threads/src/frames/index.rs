//! The index of rows by address: read without a lock while entries are added and withdrawn.
//!
//! The index is two levels of sorted arrays that never change once readers can see them. A writer that adds or
//! withdraws an entry makes a new array of the entry's neighbours and a new array of all arrays, and swaps one pointer:
//! with n entries that is about n / 64 + 64 words, so that 10,000 modules do not slow each other down. A reader counts
//! itself before it reads the pointer. There are two counters. A writer that has swapped the pointer makes new readers
//! count in the other counter, and waits until the first counter is zero. From then on no reader can see the old
//! arrays, or the entry that was withdrawn.
//!
//! Readers never wait, and may be signal handlers that have interrupted a writer. A writer waits until the current
//! walks are over. So a writer must not run within a walk, or while threads are held that may be in a walk.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::libgcc::{self, RegisteredRun};
use super::listing::Listing;
use crate::fork_handlers::ForkHandlers;

/// Rows for a range of addresses.
#[derive(Clone, Copy)]
struct IndexedRows {
    start: u64,
    end: u64,
    /// The rows. The guard of this range owns them, and frees them when no reader can see the entry.
    rows: *const Listing,
}

/// Entries with adjacent ranges, by address.
type Chunk = Vec<IndexedRows>;

/// Chunks by the start of their first entry. None is empty.
type Index = Vec<(u64, *mut Chunk)>;

/// The greatest length of a chunk. A longer chunk is split into two.
const CHUNK: usize = 64;

/// The index that readers see. Null as long as there has been no entry.
static CURRENT: AtomicPtr<Index> = AtomicPtr::new(ptr::null_mut());

/// The index of the counter in which new readers count themselves.
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
    /// The first address of the known range.
    pub start: u64,
    /// The address behind the known range.
    pub end: u64,
}

/// Rows that walks find. Dropping this guard withdraws the rows: when the drop returns, no walk uses them any more.
///
/// The guard must be dropped before the code can be reused for another purpose, and neither within a walk nor while
/// threads are held that may be in a walk.
pub struct Known {
    start: u64,
    rows: *mut Listing,
    /// The registration with the process's unwinder. The unwinder reads the rows, so the registration is dropped first.
    registered: Option<RegisteredRun>,
}

// SAFETY: the rows are never written, and the one guard frees them.
unsafe impl Send for Known {}
// SAFETY: a shared reference to a guard gives access to nothing.
unsafe impl Sync for Known {}

impl Known {
    /// Adds rows for a range that has no rows yet.
    pub(crate) fn new(code: Range<u64>, rows: Listing) -> Result<Known, Overlap> {
        let start = code.start;
        let _writer = writer();
        let old = Current::get();
        let at = old.chunk(start);
        let neighbours = at.map_or(&[][..], |at| old.entries(at));
        let place = neighbours.partition_point(|entry| entry.start <= start);
        let behind = neighbours.get(place).or_else(|| at.and_then(|at| old.entries(at + 1).first()));
        let before = place.checked_sub(1).map(|before| &neighbours[before]);
        let overlaps = |entry: &&IndexedRows| entry.start < code.end.max(start + 1) && start < entry.end;
        if let Some(known) = before.into_iter().chain(behind).find(overlaps) {
            return Err(Overlap { start: known.start, end: known.end });
        }
        let rows = Box::into_raw(Box::new(rows));
        let mut chunk = Chunk::with_capacity(neighbours.len() + 1);
        chunk.extend_from_slice(&neighbours[..place]);
        chunk.push(IndexedRows { start, end: code.end, rows });
        chunk.extend_from_slice(&neighbours[place..]);
        let second = (chunk.len() > CHUNK).then(|| chunk.split_off(CHUNK / 2));
        old.replace(at, [Some(chunk), second]);
        Ok(Known { start, rows, registered: None })
    }

    /// Makes the guard withdraw this registration as well, before anything else.
    pub(crate) fn and_registered(mut self, registered: RegisteredRun) -> Known {
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
        // SAFETY: `new` made the box with Box::into_raw. The entry that pointed to it was taken out of the index, and
        // `replace` has waited for every reader that could have seen the entry.
        drop(unsafe { Box::from_raw(self.rows) });
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({:#x})", self.start)
    }
}

/// The current index, as the one writer uses it.
struct Current {
    index: *mut Index,
}

impl Current {
    /// Returns the current index. The caller must hold the writer's lock.
    fn get() -> Current {
        Current { index: CURRENT.load(Ordering::Acquire) }
    }

    fn chunks(&self) -> &[(u64, *mut Chunk)] {
        // SAFETY: the pointer is null, or `replace` made it with Box::into_raw; only a writer frees it, and this is the
        // only writer.
        unsafe { self.index.as_ref() }.map_or(&[], Vec::as_slice)
    }

    /// Returns the chunk that an address belongs to; `None` if there is no chunk.
    fn chunk(&self, start: u64) -> Option<usize> {
        let chunks = self.chunks();
        let behind = chunks.partition_point(|(first, _)| *first <= start);
        (!chunks.is_empty()).then(|| behind.saturating_sub(1))
    }

    /// Returns the entries of a chunk; an empty slice if there is no such chunk.
    fn entries(&self, chunk: usize) -> &[IndexedRows] {
        let Some((_, chunk)) = self.chunks().get(chunk) else { return &[] };
        // SAFETY: `replace` made the chunk with Box::into_raw; only a writer frees it, and this is the only writer.
        unsafe { &**chunk }
    }

    /// Replaces the chunk `at` by these chunks for readers (`None`: adds them as the first ones). Waits until no reader
    /// sees the old index any more, and frees the old index and the old chunk.
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
            // SAFETY: an earlier call made the chunk with Box::into_raw above. Only the old index pointed to the chunk,
            // and every reader that can have seen the old index is done.
            drop(unsafe { Box::from_raw(chunk) });
        }
        if !self.index.is_null() {
            // SAFETY: as above, for the index itself.
            drop(unsafe { Box::from_raw(self.index) });
        }
    }
}

/// Returns when every reader that counted itself before the call is done. The caller must hold the writer's lock.
fn wait_for_readers() {
    let old = PHASE.load(Ordering::Relaxed);
    // A reader that finds this new phase reads CURRENT later, and so sees the pointer that was stored before.
    PHASE.store(1 - old, Ordering::SeqCst);
    while READERS[old].load(Ordering::SeqCst) != 0 {
        // The reader has been preempted by another thread, or waits for this processor.
        std::thread::yield_now();
    }
}

/// A reader of the index. The rows that it has found stay until this value is dropped.
pub(crate) struct Reading {
    phase: usize,
    index: *const Index,
}

impl Reading {
    pub(crate) fn begin() -> Reading {
        loop {
            let phase = PHASE.load(Ordering::SeqCst);
            READERS[phase].fetch_add(1, Ordering::SeqCst);
            // If the phase has ended, no writer would wait for this reader.
            if PHASE.load(Ordering::SeqCst) == phase {
                return Reading { phase, index: CURRENT.load(Ordering::SeqCst) };
            }
            READERS[phase].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Returns the rows that are known for an address.
    pub(crate) fn find(&self, at: u64) -> Option<&Listing> {
        // SAFETY: the pointer is null, or a writer made it, which waits for this reader before the index is freed.
        let chunks = unsafe { self.index.as_ref() }?;
        let behind = chunks.partition_point(|(first, _)| *first <= at);
        let (_, chunk) = chunks.get(behind.checked_sub(1)?)?;
        // SAFETY: the same argument holds for each chunk of an index.
        let entries = unsafe { &**chunk };
        let behind = entries.partition_point(|entry| entry.start <= at);
        let entry = entries.get(behind.checked_sub(1)?)?;
        // SAFETY: the guard frees the rows only after a writer has taken the entry out and has waited for this reader.
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

/// Installs fork handlers: fork waits for a writer. The child has no readers but those of its own thread, which has
/// none.
///
/// Code that makes rows known may have locks of its own. A caller that holds such locks over a fork must call this
/// function before it calls `pthread_atfork` for them: the handlers that were installed first prepare last, so no
/// thread holds this lock while the thread waits for another lock.
///
/// # Errors
/// `pthread_atfork` has no memory.
pub fn install_fork_handlers() -> io::Result<()> {
    static HANDLERS: ForkHandlers = ForkHandlers::new(prepare, parent, child);
    HANDLERS.register()
}

extern "C" fn prepare() {
    if OVER_FORK.with_borrow(Option::is_some) {
        return;
    }
    OVER_FORK.set(Some(writer()));
    libgcc::before_fork();
}

extern "C" fn parent() {
    if OVER_FORK.with_borrow(Option::is_none) {
        return;
    }
    libgcc::after_fork();
    drop(OVER_FORK.take());
}

extern "C" fn child() {
    if OVER_FORK.with_borrow(Option::is_none) {
        return;
    }
    libgcc::after_fork();
    for readers in &READERS {
        readers.store(0, Ordering::SeqCst);
    }
    drop(OVER_FORK.take());
}
