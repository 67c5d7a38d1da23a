//! Threads that were seen not to block the signal that glibc keeps open, and not to wait for it.
//!
//! A thread is looked at before it is sent a signal: one that blocks it or waits for it is sent none. The look costs as much as the
//! signal. For the [shared](crate::signal) signal it is made once for each thread, since only a system call that goes around the C
//! library can change what it found; it is made again for one that did not come in time or blocks the signal, and each time for one
//! that was ever found to wait for it. For any other signal it is made each time.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::signal::SHARED;
use crate::task::Tid;

/// A cache: each number has one place, and a thread whose place another one has taken is looked at again. Changed only in
/// one's turn. A thread may have the number of one that has ended, and is then not looked at before it was late once.
static CLEAR: [AtomicI32; 4096] = [const { AtomicI32::new(0) }; 4096];

fn place(tid: Tid) -> Option<&'static AtomicI32> {
    CLEAR.get(usize::try_from(tid.get()).ok()? % CLEAR.len())
}

/// Whether a thread needs no look before it is sent `signal`.
pub(crate) fn is(tid: Tid, signal: i32) -> bool {
    signal == SHARED && place(tid).is_some_and(|place| place.load(Ordering::Relaxed) == tid.get())
}

/// Remembers that a thread neither blocks the signal nor waits for it, if it was never found to wait for it.
pub(crate) fn set(tid: Tid) {
    if let Some(place) = place(tid)
        && place.load(Ordering::Relaxed) != never(tid)
    {
        place.store(tid.get(), Ordering::Relaxed);
    }
}

/// Whether a thread was ever found to wait for the signal.
pub(crate) fn is_forbidden(tid: Tid) -> bool {
    place(tid).is_some_and(|place| place.load(Ordering::Relaxed) == never(tid))
}

/// Has a thread looked at before it is next sent a signal.
pub(crate) fn forget(tid: Tid) {
    if let Some(place) = place(tid) {
        let _ = place.compare_exchange(tid.get(), 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Has a thread looked at each time from now on.
pub(crate) fn forbid(tid: Tid) {
    if let Some(place) = place(tid) {
        place.store(never(tid), Ordering::Relaxed);
    }
}

/// What stands for a thread that is looked at each time.
fn never(tid: Tid) -> i32 {
    -tid.get()
}
