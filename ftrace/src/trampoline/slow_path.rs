//! The slow path of recordings: the Rust function that assembler code calls if it cannot record a function by itself,
//! and the code that preserves registers for the call.

use std::ptr;
use std::sync::atomic::Ordering;

use modload_edit::index;

use super::attach::{attach, register_for_ends};
use super::event;
use super::process_state::{CURRENT_SESSION, NO_SESSION, SLOW_PATH, UNATTACHED_CALLS};
use super::return_stack::{DONE, PASS, RETRY, RETURNED};
use super::thread_local::{ENDING, local};
use super::x86_64::{VectorWidth, slow_path_entries, slow_path_entry};

slow_path_entries!(slow_path);

/// Prepares tracing, once: stores the width of the widest vector registers, and registers for the ends of threads.
pub(crate) fn prepare(widest: VectorWidth) {
    SLOW_PATH.store(slow_path_entry(widest).get(), Ordering::SeqCst);
    register_for_ends();
}

/// Handles a function that cannot be recorded in the present state: the thread has not joined this recording yet, has
/// left functions by `longjmp`, is on a coroutine's stack, or has no free places. `slot` is the address at which the
/// function's return address is stored, or 0 if only calls are recorded. With [`RETURNED`], `slot` is the place of a
/// function that returns and is not the newest. Async-signal-safe, and no cancellation point.
extern "C" fn slow_path(slot: u64) -> u64 {
    if slot == event::EVENT_SLOT {
        event::call_hook();
        return PASS;
    }
    let local = local();
    if slot >> RETURNED != 0 {
        let place = ptr::with_exposed_provenance_mut(index(slot & !(1 << RETURNED)));
        // SAFETY: a thread that has places has a state, which is its own.
        return unsafe { local.thread.get().as_ref() }.map_or(DONE, |thread| thread.handle_return(place));
    }
    let current = CURRENT_SESSION.load(Ordering::Acquire);
    if current == NO_SESSION {
        return PASS;
    }
    if local.session.get() != current {
        let attached = if local.session.get() == ENDING { None } else { attach(local, current) };
        if attached.is_none() {
            UNATTACHED_CALLS.fetch_add(1, Ordering::Relaxed);
        }
        return attached.map_or(PASS, |()| RETRY);
    }
    // SAFETY: a thread that has joined has a state, which is its own.
    let Some(thread) = (unsafe { local.thread.get().as_ref() }) else { return PASS };
    if is_on_signal_stack() {
        thread.elsewhere.fetch_add(1, Ordering::Relaxed);
        return PASS;
    }
    thread.prepare_for_entry(slot)
}

/// Returns whether this thread is on its alternate signal stack. That stack may lie in the middle of the thread's own
/// stack, where the places of functions beneath the signal look stale. Async-signal-safe.
fn is_on_signal_stack() -> bool {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the call only reads the setting, and the kernel writes to a local variable.
    let asked = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
    asked == 0 && stack.ss_flags & libc::SS_ONSTACK != 0
}
