//! What is looked at while everybody is held: each stack, and each thread's word.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};

use modload_threads::Held;
use modload_threads::frames::{Ended, Stack, WalkError, Walker, stacks};

use super::{Blocked, Why};

/// Where a frame must not be for its thread to be over, sorted.
pub(super) type Ranges = Vec<Range<u64>>;

fn holds(ranges: &[Range<u64>], at: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= at);
    behind.checked_sub(1).is_some_and(|last| ranges[last].contains(&at))
}

/// Of a word's low half: how often its thread was asked. The rest of it tells transitions apart, so that a thread that has looked at
/// itself in one does not say of the next that it is over.
pub(super) const TRIES: u64 = 1 << 8;

/// Whether a word says that its thread is over, where threads are held.
pub(super) fn is_over(word: u64) -> bool {
    word & u64::from(u32::MAX) == 0
}

/// A word of a thread that is not over and was not asked yet.
pub(super) fn mark() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    u64::from(u32::MAX) & (NUMBER.fetch_add(1, Ordering::Relaxed) * TRIES) | 1
}

/// Whom to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whom {
    /// Everybody, for the first time: their words are set.
    All,
    /// Those who are not over.
    Left,
    /// Nobody: whoever is not over is made to be.
    Nobody,
}

/// What was seen. Made before threads are held, and has room for all.
pub(super) struct Seen {
    pub(super) blocked: Vec<Blocked>,
    pub(super) room: u64,
    pub(super) is_small: bool,
    pub(super) mark: u64,
    /// Whether nobody at all was in a stub.
    pub(super) stubs_are_empty: bool,
    pub(super) walker: Walker,
}

/// Looks at stacks while everybody is held: takes no memory.
pub(super) fn look(held: &Held, whom: Whom, ranges: &Ranges, stubs: &Ranges, seen: &mut Seen) {
    seen.blocked.clear();
    seen.stubs_are_empty = whom == Whom::All;
    seen.is_small = held.count() + 1 > seen.room;
    if seen.is_small {
        return;
    }
    for stack in stacks(held) {
        // A transition holds every thread, so that each has a word.
        let Some(word) = stack.word() else { continue };
        if whom == Whom::Nobody {
            word.store(0, Ordering::Relaxed);
        } else if whom == Whom::All || !is_over(word.load(Ordering::Relaxed)) {
            let (why, in_stub) = inside(&stack, &mut seen.walker, ranges, stubs);
            seen.stubs_are_empty &= !in_stub;
            word.store(if why.is_some() { seen.mark } else { 0 }, Ordering::Relaxed);
            seen.blocked.extend(why.map(|why| Blocked { tid: stack.tid(), why }));
        }
    }
}

/// Whether a stack has one of the ranges on it, and whether it has a stub.
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
        // It is not ended early; who cannot be seen may be anywhere.
        Ok(Ended::Early) => (Some(Why::Unknown(WalkError::NowhereToBegin)), true),
        Err(error) => (found.or(Some(Why::Unknown(error))), true),
    }
}
