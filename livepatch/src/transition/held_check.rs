//! The check of each stack and of each thread's word while all threads are held.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::Ordering;

use modload_threads::Held;
use modload_threads::frames::{Ended, Stack, WalkError, Walker, stacks};

use super::blocked::{Blocked, Why};
use super::ranges::Ranges;
use super::word::is_migrated;

fn holds(ranges: &[Range<u64>], at: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= at);
    behind.checked_sub(1).is_some_and(|last| ranges[last].contains(&at))
}

/// The threads to check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whom {
    /// All threads, for the first time: their words are set.
    All,
    /// The threads that have not migrated.
    Left,
    /// No thread: all threads are counted as migrated.
    Nobody,
}

/// The result of a check, which is allocated before threads are held, with room for all threads.
pub(super) struct Seen {
    pub(super) blocked: Vec<Blocked>,
    pub(super) room: u64,
    pub(super) is_small: bool,
    pub(super) mark: u64,
    /// Whether no thread was in a stub.
    pub(super) stubs_are_empty: bool,
    pub(super) walker: Walker,
}

/// Checks stacks while all threads are held. Allocates no memory.
pub(super) fn check_stacks(held: &Held, whom: Whom, ranges: &Ranges, stubs: &Ranges, seen: &mut Seen) {
    seen.blocked.clear();
    seen.stubs_are_empty = whom == Whom::All;
    seen.is_small = held.count() + 1 > seen.room;
    if seen.is_small {
        return;
    }
    for stack in stacks(held) {
        // A transition holds every thread, so each thread has a word.
        let Some(word) = stack.word() else { continue };
        if whom == Whom::Nobody {
            word.store(0, Ordering::Relaxed);
        } else if whom == Whom::All || !is_migrated(word.load(Ordering::Relaxed)) {
            let (why, in_stub) = inside(&stack, &mut seen.walker, ranges, stubs);
            seen.stubs_are_empty &= !in_stub;
            word.store(if why.is_some() { seen.mark } else { 0 }, Ordering::Relaxed);
            seen.blocked.extend(why.map(|why| Blocked { tid: stack.tid(), why }));
        }
    }
}

/// Returns the reason if one of the ranges is on the stack, and whether a stub is on the stack.
fn inside(stack: &Stack<'_>, walker: &mut Walker, ranges: &Ranges, stubs: &Ranges) -> (Option<Why>, bool) {
    let (mut found, mut in_stub) = (None, false);
    let walked = stack.walk_by(walker, |frame| {
        in_stub |= holds(stubs, frame.pc);
        let here = holds(ranges, frame.inside()) || holds(ranges, frame.pc) && frame.is_exact;
        if here && found.is_none() {
            found = Some(Why::Inside(frame.pc));
        }
        ControlFlow::Continue(())
    });
    match walked {
        Ok(Ended::Outermost) => (found, in_stub),
        // The walk is never ended early here. A thread whose stack cannot be walked may be anywhere.
        Ok(Ended::Early) => (Some(Why::Unknown(WalkError::NowhereToBegin)), true),
        Err(error) => (found.or(Some(Why::Unknown(error))), true),
    }
}
