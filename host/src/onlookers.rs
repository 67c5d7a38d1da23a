//! The data for the process's debugger and profiler, shared by all hosts: one list, one map, and one lock for both.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use modload_text::on_fork;

use crate::jit_list::SymbolFileList;
use crate::perf_map::Map;

/// The data for debugger and profiler.
#[derive(Debug)]
pub(crate) struct OnlookerData {
    /// The symbol files for gdb.
    pub(crate) files: SymbolFileList,
    /// The map for perf, if a host writes one.
    pub(crate) map: Option<Map>,
}

static TOLD: Mutex<OnlookerData> = Mutex::new(OnlookerData { files: SymbolFileList::new(), map: None });

/// Locks and returns the data.
pub(crate) fn onlooker_data() -> MutexGuard<'static, OnlookerData> {
    static FORKS: Once = Once::new();
    FORKS.call_once(|| on_fork(before_fork, after_fork, after_fork));
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, OnlookerData>>> = const { RefCell::new(None) };
}

/// Takes the lock before a fork, so that the child finds both parts consistent and the lock free.
fn before_fork() {
    HELD.set(Some(TOLD.lock().unwrap_or_else(PoisonError::into_inner)));
}

fn after_fork() {
    HELD.set(None);
}
