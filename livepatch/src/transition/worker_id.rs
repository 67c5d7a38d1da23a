//! The identity of the worker thread, which checks a transition after each event and periodically.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use modload_threads::Tid;

/// Whether the worker thread exists.
static WORKER_EXISTS: AtomicBool = AtomicBool::new(false);
/// The worker thread's id.
static WORKER_TID: AtomicI32 = AtomicI32::new(0);

/// Returns whether a thread is the worker. A caller that holds the table's lock knows that the worker is in none of the
/// functions that change: the worker runs no code of modules without that lock.
pub(super) fn is_worker(tid: Tid) -> bool {
    tid.get() == WORKER_TID.load(Ordering::Acquire)
}

/// Forgets the worker in the child of a fork, where that thread does not exist.
pub(super) fn forked() {
    WORKER_TID.store(0, Ordering::Relaxed);
    WORKER_EXISTS.store(false, Ordering::Relaxed);
}

/// Reserves the worker's place. Returns `false` if the worker exists already.
pub(crate) fn reserve() -> bool {
    !WORKER_EXISTS.swap(true, Ordering::AcqRel)
}

/// Stores this thread's id: this thread is the worker.
pub(crate) fn set_to_this_thread() {
    WORKER_TID.store(Tid::current().get(), Ordering::Release);
}

/// Gives up the worker's place: this thread is not the worker any more, or could not be started.
pub(crate) fn release() {
    WORKER_TID.store(0, Ordering::Release);
    WORKER_EXISTS.store(false, Ordering::Release);
}
