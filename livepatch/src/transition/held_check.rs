//! The check of each stack and of each thread's word while all threads are held.

use std::ops::{ControlFlow, Range};

use modload_threads::Held;
use modload_threads::frames::{Ended, Stack, WalkError, Walker, stacks};

use super::blocked::{BlockReason, Blocked};
use super::ranges::AddressRanges;
use super::word::ThreadWord;

/// Returns whether an address is in one of the ranges, which are sorted.
fn holds(ranges: &[Range<u64>], at: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= at);
    behind.checked_sub(1).is_some_and(|last| ranges[last].contains(&at))
}

/// The threads to check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ThreadsToCheck {
    /// All threads, for the first time: their words are set.
    All,
    /// The threads that have not migrated.
    Unmigrated,
    /// No thread: all threads are counted as migrated.
    None,
}

/// The result of a check, which is allocated before threads are held, with room for all threads.
pub(super) struct HeldCheck {
    pub(super) blocked: Vec<Blocked>,
    /// The number of threads for which there is room.
    pub(super) room: u64,
    /// Whether there are more threads than `room`. No thread was checked then.
    pub(super) is_too_small: bool,
    /// The word for threads that have not migrated.
    pub(super) unmigrated_word: ThreadWord,
    /// Whether no thread was in a stub.
    pub(super) stubs_are_empty: bool,
    pub(super) walker: Walker,
}

/// Checks stacks while all threads are held. Allocates no memory.
pub(super) fn check_stacks(
    held: &Held,
    threads: ThreadsToCheck,
    ranges: &AddressRanges,
    stubs: &AddressRanges,
    check: &mut HeldCheck,
) {
    check.blocked.clear();
    check.stubs_are_empty = threads == ThreadsToCheck::All;
    check.is_too_small = held.count() + 1 > check.room;
    if check.is_too_small {
        return;
    }
    for stack in stacks(held) {
        // A transition holds every thread, so each thread has a word.
        let Some(word) = stack.word() else { continue };
        if threads == ThreadsToCheck::None {
            ThreadWord::MIGRATED.store(word);
        } else if threads == ThreadsToCheck::All || !ThreadWord::load(word).is_migrated() {
            let (why, in_stub) = inside(&stack, &mut check.walker, ranges, stubs);
            check.stubs_are_empty &= !in_stub;
            if why.is_some() { check.unmigrated_word } else { ThreadWord::MIGRATED }.store(word);
            check.blocked.extend(why.map(|why| Blocked { tid: stack.tid(), why }));
        }
    }
}

/// Returns the reason if one of the ranges is on the stack, and whether a stub is on the stack.
fn inside(
    stack: &Stack<'_>,
    walker: &mut Walker,
    ranges: &AddressRanges,
    stubs: &AddressRanges,
) -> (Option<BlockReason>, bool) {
    let (mut found, mut in_stub) = (None, false);
    let walked = stack.walk_by(walker, |frame| {
        in_stub |= holds(stubs, frame.pc);
        let here = holds(ranges, frame.inside()) || holds(ranges, frame.pc) && frame.is_exact;
        if here && found.is_none() {
            found = Some(BlockReason::Inside(frame.pc));
        }
        ControlFlow::Continue(())
    });
    match walked {
        Ok(Ended::Outermost) => (found, in_stub),
        // The walk is never ended early here. A thread whose stack cannot be walked may be anywhere.
        Ok(Ended::Early) => (Some(BlockReason::Unknown(WalkError::NowhereToBegin)), true),
        Err(error) => (found.or(Some(BlockReason::Unknown(error))), true),
    }
}
