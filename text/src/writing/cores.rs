//! Synchronises all cores that run threads of the process with changed code.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use modload_threads::{DEFAULT_LIMIT, hold};

use crate::vocabulary::error::WriteFailed;
use crate::writing::x86_64::serialise_core;

// <linux/membarrier.h>
const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 6;

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: membarrier takes numbers only and has no effect on memory contents.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel synchronises cores for this process.
static USES_MEMBARRIER: AtomicBool = AtomicBool::new(false);

/// Registers this process with membarrier(2), for [`synchronise`]. If the kernel does not support that, all threads
/// are held instead.
pub(crate) fn register_membarrier() {
    USES_MEMBARRIER.store(membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE).is_ok(), Ordering::Relaxed);
}

/// Returns whether [`synchronise`] is a system call.
pub(crate) fn uses_membarrier() -> bool {
    USES_MEMBARRIER.load(Ordering::Relaxed)
}

/// Makes every thread of the process execute a core-serialising instruction before it next runs user code.
pub(crate) fn synchronise() -> Result<(), WriteFailed> {
    if uses_membarrier() {
        return membarrier(PRIVATE_EXPEDITED_SYNC_CORE).map_err(|source| WriteFailed::Membarrier { source });
    }
    // Each held thread serialises its core before it resumes.
    hold(DEFAULT_LIMIT).map(drop).map_err(|source| WriteFailed::Hold { source })?;
    serialise_core();
    Ok(())
}
