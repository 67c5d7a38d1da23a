//! Making every thread of the process see that code has changed.

use std::arch::x86_64::__cpuid;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use modload_threads::{DEFAULT_LIMIT, hold};

// <linux/membarrier.h>
const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 6;

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: membarrier takes numbers only and has no effect on memory contents.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel synchronises cores for us.
static BY_MEMBARRIER: AtomicBool = AtomicBool::new(false);

/// Announces that this process will call [`all_cores`]. Without the kernel's help all threads are held instead.
pub(crate) fn register() {
    BY_MEMBARRIER.store(membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE).is_ok(), Ordering::Relaxed);
}

/// Whether [`all_cores`] is a call of the kernel.
pub(crate) fn by_membarrier() -> bool {
    BY_MEMBARRIER.load(Ordering::Relaxed)
}

/// Every thread of the process executes a core-serialising instruction before it next runs user code.
pub(crate) fn all_cores() -> io::Result<()> {
    if by_membarrier() {
        return membarrier(PRIVATE_EXPEDITED_SYNC_CORE);
    }
    // Who has been held serialises its core before it goes on.
    hold(DEFAULT_LIMIT).map(drop).map_err(io::Error::other)?;
    __cpuid(0);
    Ok(())
}
