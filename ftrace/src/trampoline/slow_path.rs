//! The slow paths of recordings and events: four Rust functions that assembler code calls for what it cannot do by itself, and the
//! code that preserves registers for these calls.
//!
//! | function | argument | called if | answer |
//! |---|---|---|---|
//! | [`report_event`] | none | the stub of a live patch reports an event | none |
//! | [`join_for_call`] | none | a call cannot be recorded in the present state | [`PASS`] or [`RETRY`] |
//! | [`prepare_for_entry`] | the address of the return address | an entry cannot be recorded in the present state | [`PASS`] or [`RETRY`] |
//! | [`handle_return`] | the place of the function | a function returns that is not the newest | [`PASS`] or [`DONE`] |
//!
//! All four are async-signal-safe, and no cancellation points.

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_edit::index;

use super::attach::{attach, register_for_ends};
use super::event_hook::call_hook;
use super::function::address;
use super::process_state::{
    CURRENT_SESSION, HANDLE_RETURN, JOIN_FOR_CALL, NO_SESSION, PREPARE_FOR_ENTRY, REPORT_EVENT, SLOW_PATH,
    UNATTACHED_CALLS,
};
use super::return_stack::{DONE, PASS, RETRY};
use super::thread_local::{ENDING, Local, local};
use super::x86_64::{VectorWidth, slow_path_entry};

/// A slow path.
type SlowPath = extern "C" fn(u64) -> u64;

/// Prepares tracing, once: stores the width of the widest vector registers, and registers for the ends of threads.
pub(crate) fn prepare(widest: VectorWidth) {
    let functions: [(&AtomicU64, SlowPath); 4] = [
        (&REPORT_EVENT, report_event),
        (&JOIN_FOR_CALL, join_for_call),
        (&PREPARE_FOR_ENTRY, prepare_for_entry),
        (&HANDLE_RETURN, handle_return),
    ];
    for (place, function) in functions {
        #[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
        let function = function as *const u8;
        place.store(address(function).get(), Ordering::SeqCst);
    }
    SLOW_PATH.store(slow_path_entry(widest).get(), Ordering::SeqCst);
    register_for_ends();
}

/// Reports the event of a stub in this thread.
extern "C" fn report_event(_none: u64) -> u64 {
    call_hook();
    PASS
}

/// Lets this thread join the recording under way, if the thread has not joined yet. Returns whether the call can be recorded now.
extern "C" fn join_for_call(_none: u64) -> u64 {
    let local = local();
    match CURRENT_SESSION.load(Ordering::Acquire) {
        NO_SESSION => PASS,
        current if local.session.get() == current => RETRY,
        current => join(local, current),
    }
}

/// Prepares the record of a function that is entered: the thread has not joined the recording yet, has left functions by `longjmp`, is
/// on a coroutine's stack, or has no free places. `slot` is the address at which the function's return address is stored. Returns
/// whether the entry can be recorded now.
extern "C" fn prepare_for_entry(slot: u64) -> u64 {
    let local = local();
    let current = CURRENT_SESSION.load(Ordering::Acquire);
    if current == NO_SESSION {
        return PASS;
    }
    if local.session.get() != current {
        return join(local, current);
    }
    // SAFETY: a thread that has joined has a state, which is its own.
    let Some(thread) = (unsafe { local.thread.get().as_ref() }) else { return PASS };
    if is_on_signal_stack() {
        thread.elsewhere.fetch_add(1, Ordering::Relaxed);
        return PASS;
    }
    thread.prepare_for_entry(slot)
}

/// Handles the return of a function whose place is not the newest. Returns whether the return is complete.
extern "C" fn handle_return(place: u64) -> u64 {
    let place = ptr::with_exposed_provenance_mut(index(place));
    // SAFETY: a thread that has places has a state, which is its own.
    unsafe { local().thread.get().as_ref() }.map_or(DONE, |thread| thread.handle_return(place))
}

/// Lets this thread join a recording. Counts the call if the thread cannot join.
fn join(local: &Local, session: u32) -> u64 {
    let attached = if local.session.get() == ENDING { None } else { attach(local, session) };
    if attached.is_none() {
        UNATTACHED_CALLS.fetch_add(1, Ordering::Relaxed);
    }
    attached.map_or(PASS, |()| RETRY)
}

/// Returns whether this thread is on its alternate signal stack. That stack may lie in the middle of the thread's own
/// stack, where the places of functions beneath the signal look stale. Async-signal-safe.
fn is_on_signal_stack() -> bool {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the call only reads the setting, and the kernel writes to a local variable.
    let asked = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
    asked == 0 && stack.ss_flags & libc::SS_ONSTACK != 0
}
