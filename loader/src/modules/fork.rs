//! What fork needs of the registries: they are whole in the child, and nothing in them waits for threads that do not
//! exist there.

use std::cell::RefCell;
use std::sync::Once;
use std::thread;

use crate::modules::registry::{AllLocks, Registry};

thread_local! {
    static HELD: RefCell<Option<AllLocks>> = const { RefCell::new(None) };
}

pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| modload_text::on_fork(prepare, parent, child));
}

fn prepare() {
    HELD.set(Some(Registry::lock_all()));
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
