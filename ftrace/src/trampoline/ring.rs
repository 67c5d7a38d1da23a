//! A thread's ring: what it has recorded and nobody has read yet.
//!
//! Units of sixteen bytes: a time, a function's number, and what the thread did with it. A call is two units, the second of
//! which holds where it came from. The thread writes units and then moves the head; who reads moves the tail. The thread
//! enters a function only if there is room for its return, too, and for those of all functions that it is in: so what is in
//! the ring is whole, and what is not is counted.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use modload_edit::index;
use modload_threads::Tid;

use super::thread::Thread;

/// Bytes of a unit.
pub(crate) const UNIT: u64 = 16;

/// What a thread did with a function: the high half of a unit's second word.
pub(crate) const ENTER: u32 = 0;
pub(crate) const LEAVE: u32 = 1;
pub(crate) const UNWOUND: u32 = 2;
pub(crate) const CALL: u32 = 3;

/// A unit.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Unit {
    pub(super) time: u64,
    pub(super) number: u32,
    pub(super) what: u32,
}

/// What a thread has recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    /// The processor's time stamp.
    pub(crate) time: u64,
    /// The function's number.
    pub(crate) number: u32,
    /// [`ENTER`] and its like.
    pub(crate) what: u32,
    /// Where a call came from.
    pub(crate) parent: u64,
}

/// A thread whose ring is read, by one reader at a time.
#[derive(Debug)]
pub(crate) struct Reader {
    thread: NonNull<Thread>,
    /// Whether nothing of it is to be read any more.
    is_done: bool,
}

// SAFETY: what it shares with the thread is atomic, or ordered by the ring's head and tail; it is freed by the reader alone, when
// the thread has ended.
unsafe impl Send for Reader {}

/// What else a thread counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) dropped: u64,
    pub(crate) deep: u64,
    pub(crate) elsewhere: u64,
}

impl Reader {
    /// # Safety
    /// The thread has been made by [`super::thread`], and has no other reader.
    pub(super) unsafe fn new(thread: NonNull<Thread>) -> Reader {
        Reader { thread, is_done: false }
    }

    fn thread(&self) -> &Thread {
        // SAFETY: it lives until this reader is dropped.
        unsafe { self.thread.as_ref() }
    }

    /// Its id.
    pub(crate) fn tid(&self) -> i32 {
        self.thread().tid.load(Ordering::Relaxed)
    }

    /// Its name when it began to take part in its recording, escaped.
    pub(crate) fn name(&self) -> String {
        let name = self.thread().name.get();
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        name[..len].escape_ascii().to_string()
    }

    /// Which recording it takes part in, or took part in last.
    pub(crate) fn session(&self) -> u32 {
        self.thread().session.load(Ordering::Acquire)
    }

    /// Whether it is gone: it records nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread().ended.load(Ordering::Acquire)
    }

    /// Tells it from others that are there.
    pub(crate) fn key(&self) -> usize {
        self.thread.addr().get()
    }

    /// Whether all has been read that there will be.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    pub(crate) fn set_done(&mut self, is_done: bool) {
        self.is_done = is_done;
    }

    /// What it could not record.
    pub(crate) fn counts(&self) -> Counts {
        let Thread { dropped, deep, elsewhere, .. } = self.thread();
        let [dropped, deep, elsewhere] = [dropped, deep, elsewhere].map(|count| count.load(Ordering::Relaxed));
        Counts { dropped, deep, elsewhere }
    }

    /// Takes what it has recorded, in its order.
    pub(crate) fn take(&mut self, mut each: impl FnMut(Told)) {
        let thread = self.thread();
        let head = thread.head.load(Ordering::Acquire);
        let mut tail = thread.tail.load(Ordering::Relaxed);
        let (ring, mask) = (thread.ring.load(Ordering::Relaxed), thread.mask.load(Ordering::Relaxed));
        let unit = |at: u64| {
            let place = ring.wrapping_add(index(at & mask));
            // SAFETY: a unit of the thread's ring, which is there as long as its session is (see `attach`), between tail and
            // head: the thread has written it and writes no more to it until the tail has moved.
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
            each(Told { time, number, what, parent });
        }
        thread.tail.store(tail, Ordering::Release);
    }

    /// In the child of a fork, which has the forking thread alone: all others have ended.
    pub(crate) fn forked(&self) {
        if super::thread::is_own(self.thread.as_ptr()) {
            self.thread().tid.store(Tid::current().get(), Ordering::Relaxed);
        } else {
            self.thread().ended.store(true, Ordering::Release);
        }
    }

    /// Frees what an ended thread has left.
    pub(crate) fn free(self) {
        // SAFETY: the thread has ended, and nobody else knows of it.
        unsafe { Thread::free(self.thread) };
    }
}
