//! What fork needs: no batch half done in the child, and a descriptor of the child's own.
//!
//! `/proc/self/mem` goes on to mean the process that opened it. So the parent holds every lock of this crate over the
//! fork, and the child opens the file again before it lets go of them.

use std::cell::RefCell;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::arena::{Arena, Books};
use crate::owners;
use crate::write::TextLock;

/// What the parent's thread holds while it forks. In order of release.
struct Held {
    text: TextLock<'static>,
    _owners: owners::OverFork,
    _books: Option<MutexGuard<'static, Books>>,
}

thread_local! {
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Makes the C library call us around every fork.
pub(crate) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    // SAFETY: the three functions are `extern "C"`, take nothing, and live as long as the program.
    let failed = *INSTALLED.get_or_init(|| unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) });
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
}

extern "C" fn prepare() {
    run(|hook| (hook.prepare)());
    let text = TextLock::take();
    let books = Arena::existing().map(Arena::books);
    let held = Held { text, _owners: owners::hold_over_fork(), _books: books };
    HELD.set(Some(held));
}

extern "C" fn parent() {
    HELD.set(None);
    run(|hook| (hook.parent)());
}

extern "C" fn child() {
    HELD.with_borrow_mut(|held| {
        if let Some(held) = held {
            // If it cannot be opened, every write in the child is refused by name.
            let _ = held.text.open();
        }
    });
    HELD.set(None);
    run(|hook| (hook.child)());
}

#[derive(Clone, Copy)]
struct Hook {
    prepare: fn(),
    parent: fn(),
    child: fn(),
}

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Has three functions called around every fork: before it in the parent, and after it in the parent and in the
/// child. `prepare` is called before this crate takes its own locks, the others when it has let go of them.
pub fn on_fork(prepare: fn(), parent: fn(), child: fn()) {
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner).push(Hook { prepare, parent, child });
}

fn run(call: impl Fn(&Hook)) {
    // Copied out, so that the lock is free while a hook runs. Hooks are added once, by the crates above.
    let hooks = HOOKS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    hooks.iter().for_each(call);
}
