//! The worker thread, which checks a transition after each event and periodically.

use std::thread;
use std::time::Duration;

use super::complete::complete_if_migrated;
use crate::table::{PatchTable, table};
use crate::transition::{ActiveTransition, Waiter, checkpoint, worker_id};

/// Ensures that the worker checks the transition under way, if there is one.
pub(crate) fn keep_working(table: &PatchTable) {
    if table.transitions.active.is_some() {
        start();
    }
}

/// Starts the worker, which checks the transition as long as it is under way.
pub(super) fn start() {
    if !worker_id::reserve() {
        return;
    }
    let begun = thread::Builder::new().name("modload-klp".into()).spawn(|| {
        const FIRST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_secs(1);
        let mut pause = FIRST;
        let mut waiter = Waiter::new();
        worker_id::set_to_this_thread();
        loop {
            let happened = waiter.wait(pause);
            pause = if happened { FIRST } else { (pause * 2).min(LONGEST) };
            // This thread may be listed on the roster, if it was listed before its id was known.
            checkpoint();
            let Ok(mut table) = table() else { continue };
            if table.transitions.active.is_none() {
                worker_id::release();
                return;
            }
            if let Err(error) = complete_if_migrated(&mut table) {
                tracing::warn!(%error, "a transition cannot be completed yet");
            }
            let blocked = table.transitions.active.as_ref().map(ActiveTransition::blocked).unwrap_or_default();
            drop(table);
            waiter.watch(&blocked);
        }
    });
    if let Err(error) = begun {
        worker_id::release();
        tracing::error!(%error, "the worker thread could not be started: the transition is not checked periodically");
    }
}
