//! The thread that looks at a transition again and again: when something has happened, and now and then.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use modload_threads::Tid;

use super::UnderWay;
use super::events::{Waiter, tell};
use super::pass::checkpoint;
use crate::table::table;

/// Whether the thread is there.
static WORKING: AtomicBool = AtomicBool::new(false);
/// Its id.
static WORKER: AtomicI32 = AtomicI32::new(0);

/// Whether it is this thread. Whoever has the table knows that it is in none of the functions that change: it runs no code of modules
/// without the table.
pub(super) fn is(tid: Tid) -> bool {
    tid.get() == WORKER.load(Ordering::Acquire)
}

/// Something has happened that may complete the transition. Async-signal-safe.
pub(super) fn wake() {
    tell();
}

/// In the child of a fork the thread is not there.
pub(super) fn forked() {
    WORKER.store(0, Ordering::Relaxed);
    WORKING.store(false, Ordering::Relaxed);
}

/// Has a thread look again and again, as long as a transition is under way.
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
            // It may have been there as a thread that nobody knew yet.
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
