//! Who has, or last had, a range of text: so that a stray call can be reported by name from a signal handler.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use modload_edit::Addr;

/// Names the code of a module.
///
/// Its functions are called in a signal handler: they must not allocate, lock or panic.
pub trait Describe: Send + Sync {
    /// The module's name.
    fn module(&self) -> &str;

    /// The function at `at` and the distance from its start, if there is one.
    fn symbol(&self, at: Addr) -> Option<(&[u8], u64)>;

    /// The file descriptor that takes the report.
    fn descriptor(&self) -> libc::c_int {
        2
    }
}

/// What has become of a range of text.
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

/// How often the signal handler looks whether the table is free before it reports without a name.
const PATIENCE: u32 = 100_000;

/// A lock that a signal handler may try. It is held for a few map operations and never while foreign code runs.
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

/// Notes the owner of a range, in place of whoever had parts of it before.
pub(crate) fn set(start: Addr, end: Addr, describe: Arc<dyn Describe>) {
    let mut replaced = Vec::new();
    let mut held = Held::take();
    let table = held.table();
    let first = table.range(..=start).next_back().filter(|(_, owner)| owner.end > start).map(|(&at, _)| at);
    let overlapping: Vec<Addr> = table.range(first.unwrap_or(start)..end).map(|(&at, _)| at).collect();
    replaced.extend(overlapping.iter().filter_map(|at| table.remove(at)));
    table.insert(start, Owner { end, phase: Phase::Staged, describe });
    drop(held);
    // Owners are dropped here, without the lock: what they do then is not ours to know.
    drop(replaced);
}

/// Notes what has become of the range that begins at `start`.
pub(crate) fn set_phase(start: Addr, phase: Phase) {
    if let Some(owner) = Held::take().table().get_mut(&start) {
        owner.phase = phase;
    }
}

/// The published text that holds `at`: its first address, and the one behind its last.
pub(crate) fn published(at: Addr) -> Option<(Addr, Addr)> {
    let mut held = Held::take();
    let (start, owner) = held.table().range(..=at).next_back()?;
    (owner.end > at && owner.phase == Phase::Published).then_some((*start, owner.end))
}

/// Calls `report` with the owner of `at`, if the table can be had soon. For signal handlers.
pub(crate) fn with_owner<R>(at: Addr, report: impl FnOnce(Option<&Owner>) -> R) -> R {
    let Some(mut held) = Held::take_within(PATIENCE) else { return report(None) };
    let owner = held.table().range(..=at).next_back().map(|(_, owner)| owner).filter(|owner| owner.end > at);
    report(owner)
}

/// Holds the table over fork, so that the child finds it whole and free.
pub(crate) struct OverFork(#[expect(dead_code, reason = "held for its drop")] Held);

pub(crate) fn hold_over_fork() -> OverFork {
    OverFork(Held::take())
}
