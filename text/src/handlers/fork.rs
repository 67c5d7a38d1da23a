//! The steps around fork: the child has no batch in progress, and a descriptor of its own.
//!
//! A descriptor of `/proc/self/mem` keeps referring to the process that opened it. So the parent holds every lock of
//! this crate over the fork, and the child opens the file again before it releases the locks.

use std::cell::RefCell;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use modload_threads::ForkHandlers;

use crate::allocation::arena::{Arena, ArenaState};
use crate::allocation::owners;
use crate::handlers::batch;
use crate::writing::text_lock::TextLock;

/// The locks that the parent's thread holds while it forks. In order of release.
struct ForkLocks {
    locks: TextLocks,
    /// Held until the last hook has run: forks run one after the other, and no child finds this lock held by another
    /// fork.
    hooks: MutexGuard<'static, Vec<ForkHook>>,
}

/// The lock of the thread that creates the arena.
static CREATION: Mutex<()> = Mutex::new(());

/// Waits until no other thread creates the arena.
pub(crate) fn lock_creation() -> MutexGuard<'static, ()> {
    CREATION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every other lock of this crate. In order of release.
struct TextLocks {
    text: TextLock<'static>,
    _owners: owners::OwnersLockedForFork,
    _arena: Option<MutexGuard<'static, ArenaState>>,
    _creation: MutexGuard<'static, ()>,
}

thread_local! {
    static FORK_LOCKS: RefCell<Option<ForkLocks>> = const { RefCell::new(None) };
}

/// Makes the C library call this module around every fork.
pub(crate) fn install() -> io::Result<()> {
    static HANDLERS: ForkHandlers = ForkHandlers::new(prepare, after_in_parent, after_in_child);
    // `modload_threads` installs its handlers first, so its lock is taken after the locks of this crate and of the
    // hooks.
    modload_threads::frames::install_fork_handlers()?;
    HANDLERS.register()
}

extern "C" fn prepare() {
    if FORK_LOCKS.with_borrow(Option::is_some) {
        return;
    }
    let hooks = HOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    hooks.iter().rev().for_each(|hook| (hook.prepare)());
    let creation = lock_creation();
    let text = TextLock::take();
    let arena = Arena::existing().map(Arena::lock_state);
    // A holder of threads has the text lock; and code within that lock asks no threads any more.
    modload_threads::before_fork();
    let locks = TextLocks { text, _owners: owners::lock_for_fork(), _arena: arena, _creation: creation };
    FORK_LOCKS.set(Some(ForkLocks { locks, hooks }));
}

extern "C" fn after_in_parent() {
    let Some(ForkLocks { locks, hooks }) = FORK_LOCKS.take() else { return };
    modload_threads::after_fork_in_parent();
    drop(locks);
    hooks.iter().for_each(|hook| (hook.parent)());
}

extern "C" fn after_in_child() {
    let Some(ForkLocks { mut locks, hooks }) = FORK_LOCKS.take() else { return };
    modload_threads::after_fork_in_child();
    batch::reset_traps_in_flight();
    // If the file cannot be opened, every write in the child fails with an error that says so.
    let _ = locks.text.open();
    drop(locks);
    hooks.iter().for_each(|hook| (hook.child)());
}

/// The functions of one call of [`on_fork`].
struct ForkHook {
    prepare: fn(),
    parent: fn(),
    child: fn(),
}

static HOOKS: Mutex<Vec<ForkHook>> = Mutex::new(Vec::new());

/// Registers three functions to be called around every fork: one before it in the parent, and one each after it in the
/// parent and in the child. As with `pthread_atfork`, the functions that were registered last prepare first. `prepare`
/// is called before this crate takes its own locks, the others after it has released them. None of the three may call
/// this function.
pub fn on_fork(prepare: fn(), parent: fn(), child: fn()) {
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner).push(ForkHook { prepare, parent, child });
}
