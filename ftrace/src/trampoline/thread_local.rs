//! The thread-local memory of tracing: twenty-four bytes, which are zero in each new thread. They say whether the
//! thread is within the tracing already, and lead to the thread's state.

use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;

use modload_threads::{DEFAULT_LIMIT, Error, Interrupted, Probe, is_alone, run_in_each};

use super::function::TracerSet;
use super::thread::TraceThread;
use super::x86_64::local_address;

/// The number that means: the thread is ending, and joins no recording any more.
pub(super) const ENDING: u32 = u32::MAX - 1;

/// The thread-local memory.
#[repr(C)]
pub(super) struct Local {
    pub(super) thread: Cell<*mut TraceThread>,
    /// 1 while the thread is in tracers or about to be, 2 while it records, otherwise 0.
    pub(super) busy: Cell<u32>,
    /// The number of the recording that the thread has joined last, or 0.
    pub(super) session: Cell<u32>,
    /// The tracers that the thread is in. Null if it is in none, and for a moment when it enters them.
    running: Cell<*const TracerSet>,
}

pub(super) const RUNNING: usize = offset_of!(Local, running);
pub(super) const BUSY: usize = offset_of!(Local, busy);
pub(super) const SESSION: usize = offset_of!(Local, session);

/// Returns this thread's thread-local memory.
pub(super) fn local() -> &'static Local {
    // SAFETY: these twenty-four bytes belong to this thread and are initially zero, which is a valid `Local`.
    // Only code of this folder gets the reference, and none of it keeps the reference longer than a call in this
    // thread. So no code can hold it beyond the thread's end.
    unsafe { &*local_address().cast::<Local>() }
}

/// Returns whether this thread is in a tracer, or in code that records.
pub(crate) fn is_nested() -> bool {
    local().busy.get() != 0
}

/// A thread's activity with tracers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TracerActivity {
    /// The thread is in no tracers, and reads the tracers of its next call at that time.
    Nothing,
    /// The thread is in the tracers of this set.
    Running(*const TracerSet),
    /// The thread is about to enter tracers, or has just left them. A later check shows which.
    Something,
}

// SAFETY: the pointer is not dereferenced.
unsafe impl Send for TracerActivity {}

fn own_tracer_activity() -> TracerActivity {
    let local = local();
    match (local.busy.get(), local.running.get()) {
        (1, set) if set.is_null() => TracerActivity::Something,
        (1, set) => TracerActivity::Running(set),
        _ => TracerActivity::Nothing,
    }
}

/// Returns the activities of all threads of the process, this thread first.
///
/// # Errors
/// Threads could not be asked.
pub(crate) fn tracer_activities() -> Result<Vec<TracerActivity>, Error> {
    struct Ask;
    // SAFETY: the probe only reads thread-local memory, which exists from the thread's first instruction on.
    unsafe impl Probe for Ask {
        type Answer = TracerActivity;
        fn probe(&self, _: Interrupted<'_>) -> TracerActivity {
            own_tracer_activity()
        }
    }
    let mut all = vec![own_tracer_activity()];
    if !is_alone().unwrap_or(false) {
        all.extend(run_in_each(&Ask, DEFAULT_LIMIT)?.into_iter().map(|(_, doing)| doing));
    }
    Ok(all)
}

/// Returns whether a state is this thread's.
pub(super) fn is_own(thread: *mut TraceThread) -> bool {
    ptr::eq(local().thread.get(), thread)
}
