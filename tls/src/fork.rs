//! The steps around fork.

use std::cell::RefCell;
use std::io;

use modload_threads::ForkHandlers;

use crate::lock::Locked;
use crate::table::{self, ThreadTables};

thread_local! {
    static HELD: RefCell<Option<Locked<'static, ThreadTables>>> = const { RefCell::new(None) };
}

/// Prepares this process for thread-local variables of modules.
///
/// To be called before any other fork handler of this library is registered: the lock of this crate blocks signals, so
/// it must be taken last before a fork.
///
/// # Errors
/// The error of `pthread_atfork`: there is no memory.
pub fn install() -> io::Result<()> {
    static HANDLERS: ForkHandlers = ForkHandlers::new(prepare, after_in_parent, after_in_child);
    HANDLERS.register()?;
    table::make_exit_key();
    crate::x86_64::measure_registers();
    Ok(())
}

// The C library may call each function twice for one fork.

extern "C" fn prepare() {
    if HELD.with_borrow(Option::is_none) {
        HELD.set(Some(table::lock()));
    }
}

extern "C" fn after_in_parent() {
    HELD.set(None);
}

extern "C" fn after_in_child() {
    if let Some(mut tables) = HELD.take() {
        tables.keep_own();
    }
}
