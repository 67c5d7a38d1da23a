//! What threads do themselves: where they come by a stub, and at checkpoints. All of it is async-signal-safe.

use std::sync::atomic::Ordering;

use modload_ftrace::event_code;
use modload_threads::word;

use super::look::{TRIES, is_over};
use super::roll::{self, Phase, UNDER_WAY};
use super::shown::{Looked, SHOWN};
use super::worker;

/// A thread whose word does not send it anywhere has come by a stub.
pub(crate) fn came_by() {
    match Phase::under_way() {
        Some(phase) => roll::place(phase),
        None => count_call(),
    }
}

/// A thread that is not over has come by a stub often enough to be looked at.
fn count_call() {
    /// At most so many calls, as a power of two, until it is looked at again.
    const MOST: u64 = 16;
    let before = word::own().load(Ordering::Relaxed);
    if is_over(before) {
        return;
    }
    // Of the frames of this code, and of the function that it is about to enter, nothing follows.
    let (_, event) = event_code();
    let mut ours = true;
    let mut entered = false;
    let seen = SHOWN.look(|frame| {
        let skipped = ours || entered;
        entered = ours && event.contains(&frame.inside());
        ours &= !entered;
        skipped
    });
    if seen == Looked::Clear {
        over(before);
    } else {
        let (mark, tries) = (before & u64::from(u32::MAX) & !(TRIES - 1), (before % TRIES + 1).min(MOST));
        let calls = 1_u64.checked_shl(u32::try_from(tries).unwrap_or(0)).unwrap_or(1);
        become_one(before, calls << 32 | mark | tries);
    }
}

/// This thread, whose word was this, is over; unless it has got another word meanwhile, for it was held.
fn over(before: u64) {
    become_one(before, 0);
    worker::wake();
}

/// Writes this thread's word, unless somebody has written it meanwhile: a signal handler of its own, or who held it.
pub(super) fn become_one(before: u64, word: u64) {
    let _written = word::own().compare_exchange(before, word, Ordering::Relaxed, Ordering::Relaxed);
}

/// A place where a thread can go over. It walks its own stack there; if none of the functions that change is on it, the thread is
/// over. When no transition is under way this is a load and a branch. Says whether the thread is over, or need not be.
///
/// Async-signal-safe; but a signal handler's checkpoint is one of the code that it has interrupted, too: that is on the same stack.
#[inline]
pub fn checkpoint() -> bool {
    // An old value is as good as having come a moment earlier.
    UNDER_WAY.load(Ordering::Relaxed) == roll::NOTHING || come()
}

#[cold]
fn come() -> bool {
    if let Some(phase) = Phase::under_way() {
        return roll::come(phase);
    }
    let before = word::own().load(Ordering::Relaxed);
    if is_over(before) {
        return true;
    }
    let is_clear = SHOWN.look(|_| false) == Looked::Clear;
    if is_clear {
        over(before);
    }
    is_clear
}
