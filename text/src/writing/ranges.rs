//! Ranges of addresses that are added and removed, searched without a lock, because a signal handler may search them.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::Addr;

use crate::writing::text_lock::TextLock;

/// A list that only grows. The place of a removed range is reused for the next range.
#[derive(Debug)]
pub(crate) struct RangeList {
    first: AtomicPtr<RangeNode>,
}

/// A place for a range.
#[derive(Debug)]
pub(crate) struct RangeNode {
    /// The version of the range: odd while there is a range, changed by each change.
    version: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    next: *const RangeNode,
}

// SAFETY: `next` is written before the node is shared, and points to another node that lives for ever.
unsafe impl Sync for RangeNode {}
// SAFETY: as for Sync.
unsafe impl Send for RangeNode {}

impl RangeList {
    pub(crate) const fn new() -> RangeList {
        RangeList { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Adds a range. The lock lets only one thread at a time do so.
    pub(crate) fn add(&self, _lock: &TextLock<'_>, start: Addr, end: Addr) -> &'static RangeNode {
        let unused = self.all().find(|node| !node.is_used());
        let node = unused.unwrap_or_else(|| {
            let next = self.first.load(Ordering::SeqCst).cast_const();
            let (version, start, end) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            // Only the pointer is kept, so that readers may use it; a reference taken before the node was shared would
            // forbid that.
            let node = Box::into_raw(Box::new(RangeNode { version, start, end, next }));
            self.first.store(node, Ordering::SeqCst);
            // SAFETY: a node, which lives for ever and is never borrowed mutably.
            unsafe { &*node }
        });
        node.start.store(start.get(), Ordering::SeqCst);
        node.end.store(end.get(), Ordering::SeqCst);
        node.version.fetch_add(1, Ordering::SeqCst);
        node
    }

    /// Returns the range that holds an address. Allocates nothing and takes no lock.
    pub(crate) fn containing(&self, at: Addr) -> Option<(Addr, Addr)> {
        self.all().filter_map(RangeNode::read).find(|(start, end)| (*start..*end).contains(&at))
    }

    fn all(&self) -> impl Iterator<Item = &'static RangeNode> {
        let node_at = |node: *const RangeNode| {
            // SAFETY: null, or a node, which lives for ever and is never borrowed mutably once it is in the list.
            unsafe { node.as_ref() }
        };
        std::iter::successors(node_at(self.first.load(Ordering::SeqCst).cast_const()), move |node| node_at(node.next))
    }
}

impl RangeNode {
    fn is_used(&self) -> bool {
        !self.version.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// Returns the first address and the address behind the last, as long as the range is there.
    pub(crate) fn range(&self) -> (Addr, Addr) {
        (Addr::new(self.start.load(Ordering::SeqCst)), Addr::new(self.end.load(Ordering::SeqCst)))
    }

    /// Returns the range, if there is one. Both ends belong to the same range, because the version has not changed in
    /// between.
    fn read(&self) -> Option<(Addr, Addr)> {
        loop {
            let version = self.version.load(Ordering::SeqCst);
            if version.is_multiple_of(2) {
                return None;
            }
            let range = self.range();
            if self.version.load(Ordering::SeqCst) == version {
                return Some(range);
            }
        }
    }

    /// Removes the range. Code that has found the range before runs under the lock, or is a signal handler that has
    /// read code which stays mapped.
    pub(crate) fn remove(&self, _lock: &TextLock<'_>) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, RangeList, TextLock};

    #[test]
    fn places_are_used_again() {
        let ranges = RangeList::new();
        let lock = TextLock::take();
        let range = |start, end| (Addr::new(start), Addr::new(end));
        let add = |start, end| ranges.add(&lock, Addr::new(start), Addr::new(end));
        let find = |at| ranges.containing(Addr::new(at));
        let (first, second) = (add(0x10, 0x20), add(0x20, 0x30));
        assert_eq!(
            [0xf, 0x10, 0x1f, 0x20, 0x30].map(find),
            [None, Some(range(0x10, 0x20)), Some(first.range()), Some(second.range()), None]
        );
        first.remove(&lock);
        assert_eq!([0x10, 0x20].map(find), [None, Some(range(0x20, 0x30))]);
        let third = add(0x40, 0x50);
        assert_eq!((find(0x40), find(0x10), ranges.all().count()), (Some(third.range()), None, 2));
    }
}
