//! Reads of a stack that may be corrupted: a read may fail, but never faults.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::system;

/// The memory from which a walk reads stacks.
pub trait Memory {
    /// Fills `into` with the bytes at `at`. Returns `false` if they cannot be read.
    fn read(&mut self, at: u64, into: &mut [u8]) -> bool;

    /// Returns the eight bytes at `at` as a number.
    fn word(&mut self, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

/// The size of one read. Frames lie close together, and a walk goes towards higher addresses.
const WINDOW: usize = 512;

/// No read crosses a multiple of this size, because the memory behind it may not be mapped.
const PAGE: u64 = 4096;

/// The id of the process that has opened `/proc/self/mem` in the upper half, and the descriptor in the lower half; 0 if
/// there is none.
static THROUGH: AtomicU64 = AtomicU64::new(0);

/// Sets a descriptor of `/proc/self/mem` as a fallback. This process must have opened the descriptor, and must keep it
/// open. Where process_vm_readv(2) is denied, for example by a seccomp filter, the process's own stacks are read
/// through the descriptor.
pub fn read_through(memory: &impl AsRawFd) {
    let [process, descriptor] = [system::getpid(), memory.as_raw_fd()].map(|number| u64::from(number.cast_unsigned()));
    THROUGH.store(process << 32 | descriptor, Ordering::Relaxed);
}

/// Reads at most as many bytes as `into` has room for; returns the number of bytes that could be read.
fn read(process: i32, at: usize, into: &mut [u8]) -> io::Result<usize> {
    let error = match system::read_memory(process, at, into) {
        Err(error) if error.raw_os_error() != Some(libc::EFAULT) => error,
        done => return done,
    };
    let through = THROUGH.load(Ordering::Relaxed);
    let [.., a, b, c, d] = through.to_be_bytes();
    let opened_by = through >> 32;
    if opened_by == 0 || opened_by != u64::from(process.cast_unsigned()) || process != system::getpid() {
        return Err(error);
    }
    system::read_at(i32::from_be_bytes([a, b, c, d]), at, into)
}

/// The memory of a process, read by `process_vm_readv(2)`: a system call, safe in signal handlers, that fails where a
/// load would fault. The call costs about as much as a frame's row, and one call serves several frames.
///
/// With known bounds of the stack, one stack could be read without the system call. But a walk passes from an alternate
/// signal stack to the interrupted stack and through stacks that a program made itself, and the bounds of those are not
/// known.
pub struct ProcessMemory {
    process: libc::pid_t,
    window: [u8; WINDOW],
    start: u64,
    len: usize,
}

impl ProcessMemory {
    /// Returns the memory of this process.
    #[must_use]
    pub fn own() -> ProcessMemory {
        ProcessMemory::of(system::getpid())
    }

    /// Returns the memory of a process that this process may trace. The stacks of a child that was forked without exec
    /// unwind by this process's rows.
    #[must_use]
    pub fn of(process: libc::pid_t) -> ProcessMemory {
        ProcessMemory { process, window: [0; WINDOW], start: 0, len: 0 }
    }

    /// Fills `into` by one read, without the window.
    pub(super) fn read_once(&mut self, at: u64, into: &mut [u8]) -> bool {
        let Ok(from) = usize::try_from(at) else { return false };
        read(self.process, from, into).is_ok_and(|count| count == into.len())
    }

    /// Reads a piece that does not cross a page. The window is empty if the memory cannot be read.
    fn fill(&mut self, at: u64) {
        let room = usize::try_from(PAGE - at % PAGE).unwrap_or(WINDOW).min(WINDOW);
        self.start = at;
        self.len = 0;
        let Ok(remote) = usize::try_from(at) else { return };
        self.len = read(self.process, remote, &mut self.window[..room]).unwrap_or(0);
    }

    /// Returns the bytes of the window from `at` on.
    fn seen(&self, at: u64) -> Option<&[u8]> {
        let offset = usize::try_from(at.checked_sub(self.start)?).ok()?;
        self.window.get(offset..self.len).filter(|seen| !seen.is_empty())
    }
}

impl Memory for ProcessMemory {
    fn read(&mut self, mut at: u64, mut into: &mut [u8]) -> bool {
        while !into.is_empty() {
            if self.seen(at).is_none() {
                self.fill(at);
            }
            let Some(seen) = self.seen(at) else { return false };
            let len = seen.len().min(into.len());
            into[..len].copy_from_slice(&seen[..len]);
            let (Some(next), rest) = (u64::try_from(len).ok().and_then(|len| at.checked_add(len)), &mut into[len..])
            else {
                return false;
            };
            at = next;
            into = rest;
        }
        true
    }
}

impl std::fmt::Debug for ProcessMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessMemory").field("process", &self.process).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, PAGE, ProcessMemory};

    #[test]
    fn what_is_mapped_is_read_and_what_is_not_fails() {
        let length = 4 * usize::try_from(PAGE).unwrap();
        // SAFETY: a new private mapping, at an address that the kernel chooses.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED);
        let start = u64::try_from(mapping.expose_provenance()).unwrap();
        let hole = mapping.map_addr(|at| at + 2 * length / 4);
        // SAFETY: the third page of this test's own mapping, which nothing refers to.
        assert_eq!(unsafe { libc::munmap(hole, length / 4) }, 0);
        // SAFETY: the first two pages belong to this test, and are writable.
        unsafe { mapping.cast::<u8>().write_bytes(0xa5, length / 2) };
        let mut memory = ProcessMemory::own();
        let mut bytes = [0; 2000];
        assert!(memory.read(start + PAGE - 1000, &mut bytes), "across a page");
        assert_eq!(bytes, [0xa5; 2000]);
        assert_eq!(memory.word(start + PAGE - 3), Some(0xa5a5_a5a5_a5a5_a5a5));
        assert_eq!(memory.word(start + 2 * PAGE - 8), Some(0xa5a5_a5a5_a5a5_a5a5), "up to the hole");
        assert_eq!(memory.word(start + 2 * PAGE - 7), None, "into the hole");
        assert_eq!(memory.word(start + 2 * PAGE), None);
        assert_eq!(memory.word(start + 3 * PAGE), Some(0));
        for wild in [0, 8, u64::MAX, u64::MAX - 7, 1 << 63] {
            assert_eq!(memory.word(wild), None, "{wild:#x}");
        }
        // SAFETY: this test's own mapping, which nothing refers to any more.
        assert_eq!(unsafe { libc::munmap(mapping, length) }, 0);
    }
}
