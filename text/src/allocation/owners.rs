//! The current or last owner of each range of text, so that a signal handler can report a stray call by name.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use modload_edit::Addr;

/// Names the code of a module.
///
/// The trait's functions are called in a signal handler: they must not allocate, lock or panic.
pub trait Describe: Send + Sync {
    /// The module's name.
    fn module(&self) -> &str;

    /// Returns the function at `at` and the distance from its start, if there is one.
    fn symbol(&self, at: Addr) -> Option<(&[u8], u64)>;

    /// Returns the file descriptor to which the report is written.
    fn descriptor(&self) -> libc::c_int {
        2
    }
}

/// The state of a range of text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TextState {
    Staged,
    Published,
    Freed,
}

/// The module that a range of text belongs to, or belonged to last.
#[derive(Clone)]
pub(crate) struct TextOwner {
    end: Addr,
    pub(crate) state: TextState,
    pub(crate) describe: Arc<dyn Describe>,
}

/// The owners by the first address of their range; ranges do not overlap.
type OwnerTable = BTreeMap<Addr, TextOwner>;

static OWNERS: OwnersLock = OwnersLock { taken: AtomicBool::new(false), table: UnsafeCell::new(BTreeMap::new()) };

/// The number of times that the signal handler tries to lock the table before it reports without a name.
const MAX_TRIES: u32 = 100_000;

/// A lock that a signal handler may try. The lock is held for a few map operations and never while foreign code runs.
struct OwnersLock {
    taken: AtomicBool,
    table: UnsafeCell<OwnerTable>,
}

// SAFETY: the table is reached only through `LockedOwners`, of which there is at most one at a time (`taken`).
unsafe impl Sync for OwnersLock {}

/// The owners while this thread has the lock. Dropping this value unlocks them.
struct LockedOwners(&'static OwnersLock);

impl LockedOwners {
    fn take_within(tries: u32) -> Option<LockedOwners> {
        for _ in 0..tries {
            if !OWNERS.taken.swap(true, Ordering::Acquire) {
                return Some(LockedOwners(&OWNERS));
            }
            std::hint::spin_loop();
        }
        None
    }

    fn take() -> LockedOwners {
        loop {
            if let Some(locked) = LockedOwners::take_within(MAX_TRIES) {
                return locked;
            }
            std::thread::yield_now();
        }
    }

    fn table(&mut self) -> &mut OwnerTable {
        // SAFETY: this is the only `LockedOwners`, and the borrow of it makes this the only reference.
        unsafe { &mut *self.0.table.get() }
    }
}

impl Drop for LockedOwners {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Records the owner of a range, and removes earlier owners of parts of it. An empty range has no owner.
pub(crate) fn set_owner(start: Addr, end: Addr, describe: Arc<dyn Describe>) {
    if start >= end {
        return;
    }
    let mut replaced = Vec::new();
    let mut locked = LockedOwners::take();
    let table = locked.table();
    let first = table.range(..=start).next_back().filter(|(_, owner)| owner.end > start).map(|(&at, _)| at);
    let overlapping: Vec<Addr> = table.range(first.unwrap_or(start)..end).map(|(&at, _)| at).collect();
    replaced.extend(overlapping.iter().filter_map(|at| table.remove(at)));
    table.insert(start, TextOwner { end, state: TextState::Staged, describe });
    drop(locked);
    // Earlier owners are dropped here, without the lock, because their drops may run any code.
    drop(replaced);
}

/// Records the state of the range that begins at `start`.
pub(crate) fn set_state(start: Addr, state: TextState) {
    if let Some(owner) = LockedOwners::take().table().get_mut(&start) {
        owner.state = state;
    }
}

/// Returns the published text that holds `at`: its first address, and the address behind it.
pub(crate) fn published(at: Addr) -> Option<(Addr, Addr)> {
    let mut locked = LockedOwners::take();
    let (start, owner) = locked.table().range(..=at).next_back()?;
    (owner.end > at && owner.state == TextState::Published).then_some((*start, owner.end))
}

/// Calls `report` with the owner of `at`, or with `None` if the table cannot be locked soon. For signal handlers.
pub(crate) fn with_owner<R>(at: Addr, report: impl FnOnce(Option<&TextOwner>) -> R) -> R {
    let Some(mut locked) = LockedOwners::take_within(MAX_TRIES) else { return report(None) };
    let owner = locked.table().range(..=at).next_back().map(|(_, owner)| owner).filter(|owner| owner.end > at);
    report(owner)
}

/// The lock of the owners, held over fork: the child finds the table consistent and unlocked.
pub(crate) struct OwnersLockedForFork(#[expect(dead_code, reason = "held for its drop")] LockedOwners);

/// Waits for the lock of the owners.
pub(crate) fn lock_for_fork() -> OwnersLockedForFork {
    OwnersLockedForFork(LockedOwners::take())
}
