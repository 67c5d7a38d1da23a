//! The checks that threads run on themselves: in stubs and at checkpoints. All of this code is async-signal-safe.

use std::sync::atomic::Ordering;

use modload_ftrace::event_code;
use modload_threads::word;

use super::look::{TRIES, is_over};
use super::roll::{self, Phase, UNDER_WAY};
use super::shown::{Looked, SHOWN};
use super::worker;

/// Handles the event of a stub: the calling thread's word does not select a target.
pub(crate) fn came_by() {
    match Phase::under_way() {
        Some(phase) => roll::place(phase),
        None => count_call(),
    }
}

/// Checks the calling thread, if it has not migrated and has passed stubs often enough.
fn count_call() {
    /// The logarithm to base 2 of the most calls between two checks.
    const MOST: u64 = 16;
    let before = word::own().load(Ordering::Relaxed);
    if is_over(before) {
        return;
    }
    // The frames of this code, and the frame of the function that the thread is about to enter, do not count.
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

/// Marks this thread as migrated. Has no effect if the word is not `before` any more, because the thread was held
/// meanwhile.
fn over(before: u64) {
    become_one(before, 0);
    worker::wake();
}

/// Replaces this thread's word if it still equals `before`. Fails if a signal handler, or the thread that holds this
/// one, changed it.
pub(super) fn become_one(before: u64, word: u64) {
    let _written = word::own().compare_exchange(before, word, Ordering::Relaxed, Ordering::Relaxed);
}

/// A place where a thread can migrate. The thread walks its own stack and migrates if none of the functions that change
/// is on the stack. Without a transition a checkpoint costs a load and a branch. Returns whether the thread has
/// migrated or has no need to.
///
/// Async-signal-safe. A checkpoint in a signal handler is also a checkpoint of the interrupted code, because both are
/// on the same stack.
#[inline]
pub fn checkpoint() -> bool {
    // An old value has the same effect as a checkpoint a moment earlier.
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
