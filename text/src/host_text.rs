//! Text of the host itself that may be poked: ranges that the embedder has registered.

use std::fs;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::Addr;
use thiserror::Error;

/// A range of the host's own code, a part of its executable or of a library, that may be poked. Dropping it forgets the
/// range: its code stays as it is then.
#[derive(Debug)]
pub struct HostText {
    node: &'static Node,
}

/// The range cannot be registered.
#[derive(Debug, Error)]
pub enum HostTextError {
    /// Not all of it is mapped as code.
    #[error("{start}..{end} is not within one private mapping that can be read and executed and not written")]
    NotText {
        /// First address.
        start: Addr,
        /// The one behind the last.
        end: Addr,
    },
    /// What is mapped cannot be known.
    #[error("/proc/self/maps cannot be read")]
    Maps(#[source] io::Error),
}

/// A registered range, in a list that only grows: a signal handler may be walking it. Ranges that were forgotten are
/// empty, and used again.
#[derive(Debug)]
struct Node {
    start: AtomicU64,
    end: AtomicU64,
    next: *const Node,
}

// SAFETY: `next` is written before the node is shared, and points to another node that lives for ever.
unsafe impl Sync for Node {}
// SAFETY: as for Sync.
unsafe impl Send for Node {}

static FIRST: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

impl HostText {
    /// Registers a range.
    ///
    /// # Errors
    /// [`HostTextError`]: it is not code, or may be written.
    ///
    /// # Safety
    /// The code stays mapped there until this value is dropped, and nobody but [`crate::poke`] changes it meanwhile.
    /// What is poked into it must be right for the code around it.
    pub unsafe fn register(start: Addr, end: Addr) -> Result<HostText, HostTextError> {
        let maps = fs::read_to_string("/proc/self/maps").map_err(HostTextError::Maps)?;
        let covers = |line: &&str| mapping(line).is_some_and(|(from, to)| from <= start && end <= to && start < end);
        if !maps.lines().any(|line| covers(&line)) {
            return Err(HostTextError::NotText { start, end });
        }
        Ok(HostText { node: Node::enter(start, end) })
    }

    /// The first address and the one behind the last.
    #[must_use]
    pub fn range(&self) -> (Addr, Addr) {
        (Addr::new(self.node.start.load(Ordering::Relaxed)), Addr::new(self.node.end.load(Ordering::Relaxed)))
    }
}

/// The range of a private mapping of code, from a line of `/proc/self/maps` (proc(5)).
fn mapping(line: &str) -> Option<(Addr, Addr)> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let address = |hex| u64::from_str_radix(hex, 16).ok().map(Addr::new);
    rest.starts_with("r-xp").then_some((address(from)?, address(to)?))
}

impl Drop for HostText {
    fn drop(&mut self) {
        // No batch that has found it may still be under way.
        let _lock = crate::TextLock::take();
        // The end first: whoever reads between the two finds an empty range.
        self.node.end.store(0, Ordering::SeqCst);
        self.node.start.store(0, Ordering::SeqCst);
    }
}

impl Node {
    /// A node with this range. Only one thread at a time enters one: it has the lock.
    fn enter(start: Addr, end: Addr) -> &'static Node {
        let _lock = crate::TextLock::take();
        let unused = all().find(|node| node.end.load(Ordering::SeqCst) == 0);
        let node = unused.unwrap_or_else(|| {
            let next = FIRST.load(Ordering::SeqCst).cast_const();
            let node = Box::leak(Box::new(Node { start: AtomicU64::new(0), end: AtomicU64::new(0), next }));
            FIRST.store(ptr::from_mut(node), Ordering::SeqCst);
            node
        });
        node.start.store(start.get(), Ordering::SeqCst);
        node.end.store(end.get(), Ordering::SeqCst);
        node
    }
}

fn all() -> impl Iterator<Item = &'static Node> {
    let next = |node: *const Node| {
        // SAFETY: null, or a node, which lives for ever and is never borrowed mutably once it is in the list.
        unsafe { node.as_ref() }
    };
    std::iter::successors(next(FIRST.load(Ordering::SeqCst).cast_const()), move |node| next(node.next))
}

/// The registered range that holds an address. Allocates nothing and takes no lock.
pub(crate) fn containing(at: Addr) -> Option<(Addr, Addr)> {
    let range = |node: &Node| (node.start.load(Ordering::SeqCst), node.end.load(Ordering::SeqCst));
    let found = all().map(range).find(|(start, end)| (*start..*end).contains(&at.get()))?;
    Some((Addr::new(found.0), Addr::new(found.1)))
}
