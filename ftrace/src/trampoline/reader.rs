//! Reads the rings of threads.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use modload_edit::index;
use modload_threads::Tid;

use super::ring::{CALL, RingRecord, Unit};
use super::thread::TraceThread;
use super::thread_local;

/// A thread whose ring is read, by one reader at a time.
#[derive(Debug)]
pub(crate) struct RingReader {
    thread: NonNull<TraceThread>,
    /// Whether nothing more will be read of this thread.
    is_done: bool,
}

// SAFETY: data that the reader shares with the thread is atomic, or ordered by `session` or the ring's head and tail.
// Only the reader frees the thread's state, after the thread has ended.
unsafe impl Send for RingReader {}

/// The other counts of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct MissedCounts {
    pub(crate) dropped: u64,
    pub(crate) deep: u64,
    pub(crate) elsewhere: u64,
}

impl RingReader {
    /// # Safety
    /// The state has been made by `attach`, and has no other reader.
    pub(super) unsafe fn new(thread: NonNull<TraceThread>) -> RingReader {
        RingReader { thread, is_done: false }
    }

    fn thread(&self) -> &TraceThread {
        // SAFETY: the state lives until this reader is dropped.
        unsafe { self.thread.as_ref() }
    }

    /// Returns the thread's id.
    pub(crate) fn tid(&self) -> i32 {
        self.thread().tid.load(Ordering::Relaxed)
    }

    /// Returns the thread's name, escaped. The name is from the moment at which the thread joined its recording.
    pub(crate) fn name(&self) -> String {
        let name = self.thread().name.get();
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name[..len].escape_ascii().to_string()
    }

    /// Returns the number of the thread's present or last recording.
    pub(crate) fn session(&self) -> u32 {
        self.thread().session.load(Ordering::Acquire)
    }

    /// Returns whether the thread has ended: it records nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread().ended.load(Ordering::Acquire)
    }

    /// Returns the identity of the thread among the existing ones.
    pub(crate) fn key(&self) -> usize {
        self.thread.addr().get()
    }

    /// Returns whether all records of this thread have been read.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    pub(crate) fn set_done(&mut self, is_done: bool) {
        self.is_done = is_done;
    }

    /// Returns the numbers of calls that the thread could not record.
    pub(crate) fn counts(&self) -> MissedCounts {
        let TraceThread { dropped, deep, elsewhere, .. } = self.thread();
        let [dropped, deep, elsewhere] = [dropped, deep, elsewhere].map(|count| count.load(Ordering::Relaxed));
        MissedCounts { dropped, deep, elsewhere }
    }

    /// Takes the thread's records, in order.
    pub(crate) fn take(&mut self, mut each: impl FnMut(RingRecord)) {
        let thread = self.thread();
        let head = thread.head.load(Ordering::Acquire);
        let mut tail = thread.tail.load(Ordering::Relaxed);
        let (ring, mask) = (thread.ring.load(Ordering::Relaxed), thread.mask.load(Ordering::Relaxed));
        let unit = |at: u64| {
            let place = ring.wrapping_add(index(at & mask));
            // SAFETY: this is a unit of the thread's ring, between tail and head. The ring exists as long as its
            // session (see `attach`). The thread has written the unit, and does not write to it until the tail has
            // moved.
            unsafe { place.read() }
        };
        while tail != head {
            let Unit { time, number, what } = unit(tail);
            tail += 1;
            let mut parent = 0;
            if what == CALL {
                parent = unit(tail).time;
                tail += 1;
            }
            each(RingRecord { time, number, what, parent });
        }
        thread.tail.store(tail, Ordering::Release);
    }

    /// Updates the reader in the child of a fork: only the forking thread exists there, so all others have ended.
    pub(crate) fn forked(&self) {
        if thread_local::is_own(self.thread.as_ptr()) {
            self.thread().tid.store(Tid::current().get(), Ordering::Relaxed);
        } else {
            self.thread().ended.store(true, Ordering::Release);
        }
    }

    /// Frees the state of an ended thread.
    pub(crate) fn free(self) {
        // SAFETY: the thread has ended, and nothing else refers to its state.
        unsafe { TraceThread::free(self.thread) };
    }
}
