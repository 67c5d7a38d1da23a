//! The checks that threads run on themselves: in stubs and at checkpoints. All of this code is async-signal-safe.

use std::sync::atomic::Ordering;

use modload_ftrace::event_code;

use super::events;
use super::phase::{NOTHING, RosterPhase, UNDER_WAY};
use super::ranges::{OwnStackCheck, PUBLISHED_RANGES};
use super::roster;
use super::word::ThreadWord;

/// Handles the event of a stub: the calling thread's word does not select a target.
pub(crate) fn on_unmigrated_call() {
    match RosterPhase::under_way() {
        Some(phase) => roster::set_own_word(phase),
        None => count_call(),
    }
}

/// Checks the calling thread, if it has not migrated and has passed stubs often enough.
fn count_call() {
    let before = ThreadWord::of_this_thread();
    if before.is_migrated() {
        return;
    }
    // The frames of this code, and the frame of the function that the thread is about to enter, do not count.
    let (_, event) = event_code();
    let mut is_this_code = true;
    let mut is_entered_function = false;
    let own_stack = PUBLISHED_RANGES.check_own_stack(|frame| {
        let skipped = is_this_code || is_entered_function;
        is_entered_function = is_this_code && event.contains(&frame.inside());
        is_this_code &= !is_entered_function;
        skipped
    });
    if own_stack == OwnStackCheck::Clear {
        migrate(before);
    } else {
        before.replace_own(before.checked_once_more());
    }
}

/// Marks this thread as migrated. Has no effect if the word is not `before` any more, because the thread was held
/// meanwhile.
fn migrate(before: ThreadWord) {
    before.replace_own(ThreadWord::MIGRATED);
    events::report_migration();
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
    UNDER_WAY.load(Ordering::Relaxed) == NOTHING || check_at_checkpoint()
}

#[cold]
fn check_at_checkpoint() -> bool {
    if let Some(phase) = RosterPhase::under_way() {
        return roster::migrate_at_checkpoint(phase);
    }
    let before = ThreadWord::of_this_thread();
    if before.is_migrated() {
        return true;
    }
    let is_clear = PUBLISHED_RANGES.check_own_stack(|_| false) == OwnStackCheck::Clear;
    if is_clear {
        migrate(before);
    }
    is_clear
}
