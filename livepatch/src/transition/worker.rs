//! The worker thread, which checks a transition after each event and periodically.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use modload_threads::Tid;

use super::UnderWay;
use super::events::{Waiter, tell};
use super::pass::checkpoint;
use crate::table::table;

/// Whether the worker thread exists.
static WORKING: AtomicBool = AtomicBool::new(false);
/// The worker thread's id.
static WORKER: AtomicI32 = AtomicI32::new(0);

/// Returns whether a thread is the worker. A caller that holds the table's lock knows that the worker is in none of the
/// functions that change: the worker runs no code of modules without that lock.
pub(super) fn is(tid: Tid) -> bool {
    tid.get() == WORKER.load(Ordering::Acquire)
}

/// Reports an event that may complete the transition. Async-signal-safe.
pub(super) fn wake() {
    tell();
}

/// Forgets the worker in the child of a fork, where that thread does not exist.
pub(super) fn forked() {
    WORKER.store(0, Ordering::Relaxed);
    WORKING.store(false, Ordering::Relaxed);
}

/// Starts the worker, which checks the transition as long as it is under way.
pub(super) fn work() {
    if WORKING.swap(true, Ordering::AcqRel) {
        return;
    }
    let begun = thread::Builder::new().name("modload-klp".into()).spawn(|| {
        const FIRST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_secs(1);
        let mut pause = FIRST;
        let mut waiter = Waiter::new();
        WORKER.store(Tid::current().get(), Ordering::Release);
        loop {
            let happened = waiter.wait(pause);
            pause = if happened { FIRST } else { (pause * 2).min(LONGEST) };
            // This thread may be listed on the roster, if it was listed before its id was known.
            checkpoint();
            let Ok(mut table) = table() else { continue };
            if table.transition.is_none() {
                WORKER.store(0, Ordering::Release);
                WORKING.store(false, Ordering::Release);
                return;
            }
            if let Err(error) = table.go_on() {
                tracing::warn!(%error, "a transition cannot be completed yet");
            }
            let blocked = table.transition.as_ref().map(UnderWay::blocked).unwrap_or_default();
            drop(table);
            waiter.watch(&blocked);
        }
    });
    if let Err(error) = begun {
        WORKING.store(false, Ordering::Release);
        tracing::error!(%error, "no thread can be had that looks whether a transition can be completed");
    }
}
