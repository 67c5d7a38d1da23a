//! What the process's debugger and profiler are told by all its hosts: one list, one map, and the lock of both.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use modload_text::on_fork;

use crate::jit_list::List;
use crate::perf_map::Map;

/// What is told.
#[derive(Debug)]
pub(crate) struct Told {
    /// gdb's symbol files.
    pub(crate) files: List,
    /// perf's map, if a host writes it.
    pub(crate) map: Option<Map>,
}

static TOLD: Mutex<Told> = Mutex::new(Told { files: List::new(), map: None });

/// The right to tell.
pub(crate) fn told() -> MutexGuard<'static, Told> {
    static FORKS: Once = Once::new();
    FORKS.call_once(|| on_fork(before_fork, after_fork, after_fork));
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, Told>>> = const { RefCell::new(None) };
}

/// The child of a fork finds both whole, and their lock free.
fn before_fork() {
    HELD.set(Some(TOLD.lock().unwrap_or_else(PoisonError::into_inner)));
}

fn after_fork() {
    HELD.set(None);
}
