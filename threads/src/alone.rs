//! Tells whether the process has another thread. Every unload asks this, so the list of threads is kept open.

use std::io;
use std::sync::{Mutex, TryLockError};

use crate::system::{self, Descriptor};
use crate::task::Tasks;

/// The open list of this process's threads.
struct OpenTaskList {
    list: Descriptor,
    /// The process that the list belongs to: after fork, the descriptor still refers to the parent's list.
    process: i32,
    /// Device and inode of the list, to recognise the list by: other code may have closed every descriptor that it did
    /// not know, and opened other files under the same numbers.
    identity: (u64, u64),
}

static KEPT: Mutex<Option<OpenTaskList>> = Mutex::new(None);

/// Returns whether the calling thread is the process's only thread, by the kernel's count. Threads that have ended and
/// are not reaped yet count.
///
/// # Errors
///
/// The error of open(2) or fstat(2), for example if `/proc` is not mounted.
pub fn is_alone() -> io::Result<bool> {
    let mut kept = match KEPT.try_lock() {
        Ok(kept) => kept,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // Another thread holds the lock, or held the lock when this process was forked.
        Err(TryLockError::WouldBlock) => return Ok(Tasks::open()?.count()? == 1),
    };
    let process = system::getpid();
    if let Some(kept) = kept.as_ref().filter(|kept| kept.process == process)
        && let Ok(stat) = kept.list.stat()
        && (stat.st_dev, stat.st_ino) == kept.identity
    {
        return Ok(stat.st_nlink == ALONE);
    }
    let (list, stat) = open()?;
    let alone = stat.st_nlink == ALONE;
    let replaced = kept.replace(OpenTaskList { list, process, identity: (stat.st_dev, stat.st_ino) });
    // The old list's descriptor number may refer to another file by now, which this crate must not close. In a child,
    // the number refers to the parent's list.
    std::mem::forget(replaced);
    Ok(alone)
}

/// The link count of a list with one thread. The link count of a directory is two more than the number of directories
/// in the directory.
const ALONE: u64 = 3;

fn open() -> io::Result<(Descriptor, libc::stat)> {
    let list = Descriptor::open(c"/proc/self/task", libc::O_DIRECTORY)?;
    let stat = list.stat()?;
    Ok((list, stat))
}
