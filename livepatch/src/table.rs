//! The table of live patching, and its lock.
//!
//! A thread runs through the modules of several hosts, and its word refers to one transition, so there is one table for
//! all hosts. The table's lock is held while callbacks run, like Linux's `klp_mutex`. A callback of live patching must
//! not call live patching.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use modload_text::on_fork;
use modload_threads::Tid;

use crate::error::PatchError;
use crate::patch::PatchHostId;
use crate::patches::Patches;
use crate::slices::WrittenSlices;
use crate::transition::{self, Transitions};

/// All state of live patching.
#[derive(Debug)]
pub(crate) struct PatchTable {
    pub(crate) patches: Patches,
    pub(crate) slices: WrittenSlices,
    pub(crate) transitions: Transitions,
    /// The addresses of modules that were announced to this subscriber and are not unloaded.
    pub(crate) alive: Vec<usize>,
}

impl PatchTable {
    /// Returns the code that stands in for a module's own code: the functions that replace the module's functions, and
    /// the functions into which the module's addresses were written.
    pub(crate) fn stand_ins(&self, host: PatchHostId, module: &str) -> Vec<Range<u64>> {
        self.patches.replacements(host, module).chain(self.slices.code_for(host, module)).collect()
    }
}

static TABLE: Mutex<PatchTable> = Mutex::new(PatchTable {
    patches: Patches::new(),
    slices: WrittenSlices::new(),
    transitions: Transitions::new(),
    alive: Vec::new(),
});

/// The thread that holds the lock, or 0.
static OWNER: AtomicI32 = AtomicI32::new(0);

thread_local! {
    static HELD: RefCell<Option<LockedTable>> = const { RefCell::new(None) };
}

/// The table, locked for this thread.
pub(crate) struct LockedTable {
    guard: MutexGuard<'static, PatchTable>,
}

impl Drop for LockedTable {
    fn drop(&mut self) {
        OWNER.store(0, Ordering::Relaxed);
    }
}

impl std::ops::Deref for LockedTable {
    type Target = PatchTable;
    fn deref(&self) -> &PatchTable {
        &self.guard
    }
}

impl std::ops::DerefMut for LockedTable {
    fn deref_mut(&mut self) -> &mut PatchTable {
        &mut self.guard
    }
}

/// Prepares the process for patching. Called when a host is made, after tracing's `install`: so the fork handler of
/// live patching runs before tracing's, because the lock of live patching is taken first.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The lock of static keys is taken within this lock.
        let _ = modload_static_keys::StaticKeys::new();
        on_fork(
            || HELD.set(table().ok()),
            || HELD.set(None),
            || {
                if let Some(_table) = HELD.take() {
                    // The thread that held the table before the fork is this thread.
                    let before = OWNER.swap(Tid::current().get(), Ordering::Relaxed);
                    transition::forked(before);
                }
            },
        );
        modload_ftrace::on_event(transition::on_unmigrated_call);
    });
}

/// Locks the table.
///
/// # Errors
/// [`PatchError::Nested`]: this thread already holds the lock, and is in a callback.
pub(crate) fn table() -> Result<LockedTable, PatchError> {
    let this_thread = Tid::current().get();
    if OWNER.load(Ordering::Relaxed) == this_thread {
        return Err(PatchError::Nested);
    }
    // The table is consistent between any two statements that can panic.
    let guard = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    OWNER.store(this_thread, Ordering::Relaxed);
    Ok(LockedTable { guard })
}
