//! Whether there is another thread at all: asked before every unload, so the list is kept open.

use std::io;
use std::sync::{Mutex, TryLockError};

use crate::system::{self, Descriptor};
use crate::task::Tasks;

/// The open list of this process's threads.
struct Kept {
    list: Descriptor,
    /// Whose list it is: after fork it goes on to be the parent's.
    process: i32,
    /// Device and inode, by which it is known again: somebody may have closed every descriptor that he did not know, and
    /// opened others under their numbers.
    identity: (u64, u64),
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

/// Whether the calling thread is the process's only one, by the kernel's count. Threads that have ended and are not reaped
/// yet count.
///
/// # Errors
///
/// What open(2) or fstat(2) says: no `/proc`, say.
pub fn is_alone() -> io::Result<bool> {
    let mut kept = match KEPT.try_lock() {
        Ok(kept) => kept,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // Somebody else asks, or did when this process was forked.
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
    let replaced = kept.replace(Kept { list, process, identity: (stat.st_dev, stat.st_ino) });
    // Its number may be another file's by now, which is not ours to close; or it is the parent's list, in a child.
    std::mem::forget(replaced);
    Ok(alone)
}

/// A directory has two links more than directories in it.
const ALONE: u64 = 3;

fn open() -> io::Result<(Descriptor, libc::stat)> {
    let list = Descriptor::open(c"/proc/self/task", libc::O_DIRECTORY)?;
    let stat = list.stat()?;
    Ok((list, stat))
}
