//! Ranges of addresses that are added and removed, searched without a lock, because a signal handler may search them.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::Addr;

use crate::writing::text_lock::TextLock;

/// A list that only grows. The place of a removed range is reused for the next range.
#[derive(Debug)]
pub(crate) struct Ranges {
    first: AtomicPtr<Node>,
}

/// A place for a range.
#[derive(Debug)]
pub(crate) struct Node {
    /// The version of the range: odd while there is a range, changed by each change.
    version: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    next: *const Node,
}

// SAFETY: `next` is written before the node is shared, and points to another node that lives for ever.
unsafe impl Sync for Node {}
// SAFETY: as for Sync.
unsafe impl Send for Node {}

impl Ranges {
    pub(crate) const fn new() -> Ranges {
        Ranges { first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Adds a range. The lock lets only one thread at a time do so.
    pub(crate) fn enter(&self, _lock: &TextLock<'_>, start: Addr, end: Addr) -> &'static Node {
        let unused = self.all().find(|node| !node.is_there());
        let node = unused.unwrap_or_else(|| {
            let next = self.first.load(Ordering::SeqCst).cast_const();
            let (version, start, end) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            // Only the pointer is kept, so that readers may use it; a reference taken before the node was shared would
            // forbid that.
            let node = Box::into_raw(Box::new(Node { version, start, end, next }));
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
        self.all().filter_map(Node::read).find(|(start, end)| (*start..*end).contains(&at))
    }

    fn all(&self) -> impl Iterator<Item = &'static Node> {
        let next = |node: *const Node| {
            // SAFETY: null, or a node, which lives for ever and is never borrowed mutably once it is in the list.
            unsafe { node.as_ref() }
        };
        std::iter::successors(next(self.first.load(Ordering::SeqCst).cast_const()), move |node| next(node.next))
    }
}

impl Node {
    fn is_there(&self) -> bool {
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
    pub(crate) fn forget(&self, _lock: &TextLock<'_>) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Ranges, TextLock};

    #[test]
    fn places_are_used_again() {
        let ranges = Ranges::new();
        let lock = TextLock::take();
        let range = |start, end| (Addr::new(start), Addr::new(end));
        let enter = |start, end| ranges.enter(&lock, Addr::new(start), Addr::new(end));
        let find = |at| ranges.containing(Addr::new(at));
        let (one, two) = (enter(0x10, 0x20), enter(0x20, 0x30));
        assert_eq!(
            [0xf, 0x10, 0x1f, 0x20, 0x30].map(find),
            [None, Some(range(0x10, 0x20)), Some(one.range()), Some(two.range()), None]
        );
        one.forget(&lock);
        assert_eq!([0x10, 0x20].map(find), [None, Some(range(0x20, 0x30))]);
        let three = enter(0x40, 0x50);
        assert_eq!((find(0x40), find(0x10), ranges.all().count()), (Some(three.range()), None, 2));
    }
}
