//! A cache of threads that were seen neither to block nor to wait for the signal that glibc keeps open.
//!
//! A thread is inspected before it is sent a signal: a thread that blocks the signal or waits for it is sent none. The
//! inspection costs as much as the signal. For the [shared](crate::signal) signal, each thread is inspected once, since
//! only a system call that goes around the C library can change the result. A thread that was late once, or that blocks
//! the signal, is inspected again. A thread that was ever found to wait for the signal is inspected each time. For any
//! other signal, each thread is inspected each time.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::signal::SHARED;
use crate::task::Tid;

/// The cache: each thread number has one place. A thread whose place another thread has taken is inspected again. Only
/// the thread whose [turn](crate::turn) it is changes the cache. A new thread may have the number of a thread that has
/// ended; then the new thread is not inspected before it was late once.
static CLEAR: [AtomicI32; 4096] = [const { AtomicI32::new(0) }; 4096];

fn place(tid: Tid) -> Option<&'static AtomicI32> {
    CLEAR.get(usize::try_from(tid.get()).ok()? % CLEAR.len())
}

/// Returns whether a thread can be sent `signal` without an inspection.
pub(crate) fn is(tid: Tid, signal: i32) -> bool {
    signal == SHARED && place(tid).is_some_and(|place| place.load(Ordering::Relaxed) == tid.get())
}

/// Records that a thread neither blocks the signal nor waits for it. Does nothing if the thread was ever found to wait
/// for the signal.
pub(crate) fn set(tid: Tid) {
    if let Some(place) = place(tid)
        && place.load(Ordering::Relaxed) != never(tid)
    {
        place.store(tid.get(), Ordering::Relaxed);
    }
}

/// Returns whether a thread was ever found to wait for the signal.
pub(crate) fn is_forbidden(tid: Tid) -> bool {
    place(tid).is_some_and(|place| place.load(Ordering::Relaxed) == never(tid))
}

/// Has a thread inspected before it is next sent a signal.
pub(crate) fn forget(tid: Tid) {
    if let Some(place) = place(tid) {
        let _ = place.compare_exchange(tid.get(), 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Has a thread inspected each time from now on.
pub(crate) fn forbid(tid: Tid) {
    if let Some(place) = place(tid) {
        place.store(never(tid), Ordering::Relaxed);
    }
}

/// Returns the mark of a thread that is inspected each time.
fn never(tid: Tid) -> i32 {
    -tid.get()
}
