//! The steps around fork: the child has no batch in progress, and a descriptor of its own.
//!
//! A descriptor of `/proc/self/mem` keeps referring to the process that opened it. So the parent holds every lock of
//! this crate over the fork, and the child opens the file again before it releases the locks.

use std::cell::RefCell;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::allocation::arena::{Arena, Books};
use crate::allocation::owners;
use crate::handlers::batch;
use crate::writing::text_lock::TextLock;

/// The locks that the parent's thread holds while it forks. In order of release.
struct Held {
    locks: Locks,
    /// Held until the last hook has run: forks run one after the other, and no child finds this lock held by another
    /// fork.
    hooks: MutexGuard<'static, Vec<Hook>>,
}

/// Every other lock of this crate. In order of release.
struct Locks {
    text: TextLock<'static>,
    _owners: owners::OverFork,
    _books: Option<MutexGuard<'static, Books>>,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Makes the C library call this module around every fork.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    // The lock of that crate is taken within all locks of this crate, and those of its hooks.
    modload_threads::frames::install_fork_handlers()?;
    // SAFETY: the three functions are `extern "C"`, take no arguments, and live as long as the program.
    let failed = *INSTALLED.get_or_init(|| unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) });
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

extern "C" fn prepare() {
    let hooks = HOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    hooks.iter().rev().for_each(|hook| (hook.prepare)());
    let text = TextLock::take();
    let books = Arena::existing().map(Arena::books);
    // A holder of threads has the text lock; and code within that lock asks no threads any more.
    modload_threads::before_fork();
    let locks = Locks { text, _owners: owners::hold_over_fork(), _books: books };
    HELD.set(Some(Held { locks, hooks }));
}

extern "C" fn parent() {
    modload_threads::after_fork_in_parent();
    let Some(Held { locks, hooks }) = HELD.take() else { return };
    drop(locks);
    hooks.iter().for_each(|hook| (hook.parent)());
}

extern "C" fn child() {
    modload_threads::after_fork_in_child();
    let Some(Held { mut locks, hooks }) = HELD.take() else { return };
    batch::forget_in_flight();
    // If the file cannot be opened, every write in the child fails with an error that says so.
    let _ = locks.text.open();
    drop(locks);
    hooks.iter().for_each(|hook| (hook.child)());
}

struct Hook {
    prepare: fn(),
    parent: fn(),
    child: fn(),
}

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Registers three functions to be called around every fork: one before it in the parent, and one each after it in the
/// parent and in the child. As with `pthread_atfork`, the functions that were registered last prepare first. `prepare`
/// is called before this crate takes its own locks, the others after it has released them. None of the three may call
/// this function.
pub fn on_fork(prepare: fn(), parent: fn(), child: fn()) {
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner).push(Hook { prepare, parent, child });
}
