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
pub(crate) enum Phase {
    Staged,
    Published,
    Gone,
}

#[derive(Clone)]
pub(crate) struct Owner {
    end: Addr,
    pub(crate) phase: Phase,
    pub(crate) describe: Arc<dyn Describe>,
}

/// The owners by the first address of their range; ranges do not overlap.
type Table = BTreeMap<Addr, Owner>;

static OWNERS: Spin = Spin { taken: AtomicBool::new(false), table: UnsafeCell::new(BTreeMap::new()) };

/// The number of times that the signal handler tries to lock the table before it reports without a name.
const PATIENCE: u32 = 100_000;

/// A lock that a signal handler may try. The lock is held for a few map operations and never while foreign code runs.
struct Spin {
    taken: AtomicBool,
    table: UnsafeCell<Table>,
}

// SAFETY: the table is reached only through `Held`, of which there is at most one at a time (`taken`).
unsafe impl Sync for Spin {}

struct Held(&'static Spin);

impl Held {
    fn take_within(tries: u32) -> Option<Held> {
        for _ in 0..tries {
            if !OWNERS.taken.swap(true, Ordering::Acquire) {
                return Some(Held(&OWNERS));
            }
            std::hint::spin_loop();
        }
        None
    }

    fn take() -> Held {
        loop {
            if let Some(held) = Held::take_within(PATIENCE) {
                return held;
            }
            std::thread::yield_now();
        }
    }

    fn table(&mut self) -> &mut Table {
        // SAFETY: this is the only `Held`, and the borrow of it makes this the only reference.
        unsafe { &mut *self.0.table.get() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

/// Records the owner of a range, and removes earlier owners of parts of it.
pub(crate) fn set(start: Addr, end: Addr, describe: Arc<dyn Describe>) {
    let mut replaced = Vec::new();
    let mut held = Held::take();
    let table = held.table();
    let first = table.range(..=start).next_back().filter(|(_, owner)| owner.end > start).map(|(&at, _)| at);
    let overlapping: Vec<Addr> = table.range(first.unwrap_or(start)..end).map(|(&at, _)| at).collect();
    replaced.extend(overlapping.iter().filter_map(|at| table.remove(at)));
    table.insert(start, Owner { end, phase: Phase::Staged, describe });
    drop(held);
    // Earlier owners are dropped here, without the lock, because their drops may run any code.
    drop(replaced);
}

/// Records the state of the range that begins at `start`.
pub(crate) fn set_phase(start: Addr, phase: Phase) {
    if let Some(owner) = Held::take().table().get_mut(&start) {
        owner.phase = phase;
    }
}

/// Returns the published text that holds `at`: its first address, and the address behind it.
pub(crate) fn published(at: Addr) -> Option<(Addr, Addr)> {
    let mut held = Held::take();
    let (start, owner) = held.table().range(..=at).next_back()?;
    (owner.end > at && owner.phase == Phase::Published).then_some((*start, owner.end))
}

/// Calls `report` with the owner of `at`, or with `None` if the table cannot be locked soon. For signal handlers.
pub(crate) fn with_owner<R>(at: Addr, report: impl FnOnce(Option<&Owner>) -> R) -> R {
    let Some(mut held) = Held::take_within(PATIENCE) else { return report(None) };
    let owner = held.table().range(..=at).next_back().map(|(_, owner)| owner).filter(|owner| owner.end > at);
    report(owner)
}

/// Holds the table over fork, so that the child finds it consistent and unlocked.
pub(crate) struct OverFork(#[expect(dead_code, reason = "held for its drop")] Held);

pub(crate) fn hold_over_fork() -> OverFork {
    OverFork(Held::take())
}
