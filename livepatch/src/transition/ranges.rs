//! The ranges of a transition, for threads that check their own stacks anywhere. Read without a lock.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use modload_threads::frames::{Frame, walk_here};

/// The ranges that must not be on the stack of a thread that migrates. Sorted.
pub(super) type AddressRanges = Vec<Range<u64>>;

/// The most ranges. In a transition with more ranges, threads cannot check themselves: only the worker checks them.
pub(super) const MOST_PUBLISHED: usize = 4096;

pub(super) struct PublishedRanges {
    /// Odd while the ranges are being written.
    version: AtomicU32,
    len: AtomicUsize,
    ends: [[AtomicU64; 2]; MOST_PUBLISHED],
}

pub(super) static PUBLISHED_RANGES: PublishedRanges = PublishedRanges {
    version: AtomicU32::new(0),
    len: AtomicUsize::new(0),
    ends: [const { [const { AtomicU64::new(0) }; 2] }; MOST_PUBLISHED],
};

/// The result of a thread's check of its own stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OwnStackCheck {
    /// None of the ranges is on the stack.
    Clear,
    /// One of the ranges is on the stack. The value is the address in that frame.
    Inside(u64),
    /// The stack cannot be walked to its end.
    Unwalked,
    /// The ranges are changing, or there are none, or too many.
    Changing,
}

impl PublishedRanges {
    /// Replaces the ranges. The caller holds the table's lock.
    pub(super) fn publish(&self, ranges: &[Range<u64>]) {
        self.version.fetch_add(1, Ordering::AcqRel);
        for (ends, range) in self.ends.iter().zip(ranges) {
            ends[0].store(range.start, Ordering::Relaxed);
            ends[1].store(range.end, Ordering::Relaxed);
        }
        self.len.store(ranges.len(), Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.publish(&[]);
    }

    /// Checks whether one of the ranges is on this thread's stack. Skipped frames do not count.
    pub(super) fn check_own_stack(&self, mut skip: impl FnMut(&Frame) -> bool) -> OwnStackCheck {
        let version = self.version.load(Ordering::Acquire);
        let Some(ranges) = self.ends.get(..self.len.load(Ordering::Relaxed)) else { return OwnStackCheck::Changing };
        if !version.is_multiple_of(2) || ranges.is_empty() {
            return OwnStackCheck::Changing;
        }
        let holds = |at: u64| {
            let behind = ranges.partition_point(|[start, _]| start.load(Ordering::Relaxed) <= at);
            behind.checked_sub(1).is_some_and(|last| at < ranges[last][1].load(Ordering::Relaxed))
        };
        let mut found = None;
        let walked = walk_here(|frame| {
            if !skip(frame) && (holds(frame.inside()) || frame.is_exact && holds(frame.pc)) {
                found = Some(frame.pc);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        let same = self.version.load(Ordering::Acquire) == version;
        match (walked, found) {
            _ if !same => OwnStackCheck::Changing,
            (Ok(_), None) => OwnStackCheck::Clear,
            (Ok(_), Some(pc)) => OwnStackCheck::Inside(pc),
            (Err(_), _) => OwnStackCheck::Unwalked,
        }
    }
}
