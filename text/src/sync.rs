//! Making every thread of the process see that code has changed.

use std::io;

// <linux/membarrier.h>
const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 6;

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: membarrier takes numbers only and has no effect on memory contents.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Announces that this process will call [`all_cores`].
pub(crate) fn register() -> io::Result<()> {
    membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)
}

/// Every thread of the process executes a core-serialising instruction before it next runs user code.
pub(crate) fn all_cores() -> io::Result<()> {
    membarrier(PRIVATE_EXPEDITED_SYNC_CORE)
}
