//! Locks all registries over a fork, so that registries are consistent in the child and nothing waits for threads that
//! the child does not have.

use std::cell::RefCell;
use std::sync::{MutexGuard, Once};
use std::thread;

use crate::modules::quarantine::{Quarantined, quarantine};
use crate::modules::registry::{Book, Pool, pool};

/// Every lock of this crate, held over fork.
struct AllLocks {
    books: Vec<MutexGuard<'static, Book>>,
    _quarantine: MutexGuard<'static, Vec<Quarantined>>,
    _pool: MutexGuard<'static, Pool>,
}

impl AllLocks {
    /// Takes every lock.
    fn take() -> AllLocks {
        let pool = pool();
        let books = pool.all.iter().map(|registry| registry.lock()).collect();
        AllLocks { books, _quarantine: quarantine(), _pool: pool }
    }
}

thread_local! {
    static HELD: RefCell<Option<AllLocks>> = const { RefCell::new(None) };
}

pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| modload_text::on_fork(prepare, parent, child));
}

fn prepare() {
    HELD.set(Some(AllLocks::take()));
}

fn parent() {
    HELD.set(None);
}

fn child() {
    let here = thread::current().id();
    if let Some(mut held) = HELD.take() {
        held.books.iter_mut().for_each(|book| book.only_thread(here));
    }
}
