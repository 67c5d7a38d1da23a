//! System calls, made directly. The C library's wrappers write `errno`, are cancellation points (`open`, `read` and
//! `close` are), and may be resolved lazily. None of that may happen in a signal handler or while threads are held.
//!
//! Errors are `io::Error`s made from the kernel's number, which allocates no memory.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::ptr;
use std::time::Duration;

use crate::x86_64::system_call;

/// The lowest result that is an error: results from here to -1 are negated error numbers, see syscalls(2).
const LAST_ERROR: isize = -4095;

/// Makes one system call.
///
/// # Safety
///
/// As for the system call: pointers among the arguments are valid for the kernel's accesses.
unsafe fn call(number: libc::c_long, arguments: [usize; 6]) -> io::Result<usize> {
    // SAFETY: the caller promises that the call's effects on memory are sound.
    let result = unsafe { system_call(number, arguments) };
    if (LAST_ERROR..0).contains(&result) {
        // The range fits in an i32.
        let number = i32::try_from(-result).unwrap_or(libc::EINVAL);
        return Err(io::Error::from_raw_os_error(number));
    }
    Ok(result.cast_unsigned())
}

/// Returns a number as a register's contents: the kernel reads only the lower half.
fn register(number: i32) -> usize {
    isize::try_from(number).unwrap_or_default().cast_unsigned()
}

/// Returns a result that the kernel defines as an `int`.
fn int(result: usize) -> i32 {
    i32::try_from(result).unwrap_or(i32::MAX)
}

/// <linux/membarrier.h>: `MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE`.
const SYNC_CORE: usize = 1 << 5;

/// Makes each core execute a core-serialising instruction before it next runs user code of this process
/// (membarrier(2)). Fails if the kernel does not support this, or if the process has not been registered for it.
pub(crate) fn sync_cores() -> io::Result<()> {
    // SAFETY: membarrier takes numbers only and has no effect on memory contents.
    unsafe { call(libc::SYS_membarrier, [SYNC_CORE, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Returns the calling thread's id.
pub(crate) fn gettid() -> i32 {
    // SAFETY: gettid takes no arguments and cannot fail.
    unsafe { call(libc::SYS_gettid, [0; 6]) }.map_or(0, int)
}

/// Returns the calling process's id.
pub(crate) fn getpid() -> i32 {
    // SAFETY: getpid takes no arguments and cannot fail.
    unsafe { call(libc::SYS_getpid, [0; 6]) }.map_or(0, int)
}

/// Returns the calling process's real user id.
fn getuid() -> u32 {
    // SAFETY: getuid takes no arguments and cannot fail.
    unsafe { call(libc::SYS_getuid, [0; 6]) }.map_or(0, |uid| u32::try_from(uid).unwrap_or(u32::MAX))
}

/// Reads memory of a process by process_vm_readv(2); returns the number of bytes that were read.
pub(crate) fn read_memory(process: i32, at: usize, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // Only the kernel follows this address.
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(at), iov_len: into.len() };
    let (local, remote) = ((&raw const local).expose_provenance(), (&raw const remote).expose_provenance());
    // SAFETY: one vector of each kind; the local one is `into`, which is borrowed mutably. The kernel reads the memory
    // of the remote one, and refuses memory that is not mapped.
    unsafe { call(libc::SYS_process_vm_readv, [register(process), local, 1, remote, 1, 0]) }
}

/// Reads from a place of an open file by pread64(2); returns the number of bytes that were read.
pub(crate) fn read_at(descriptor: i32, at: usize, into: &mut [u8]) -> io::Result<usize> {
    let arguments = [register(descriptor), into.as_mut_ptr().expose_provenance(), into.len(), at, 0, 0];
    // SAFETY: the kernel writes at most `len` bytes into the buffer, which is borrowed mutably.
    unsafe { call(libc::SYS_pread64, arguments) }
}

/// An open file, closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Descriptor(i32);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: this value alone owns the descriptor. Close closes it even if the call reports an error.
        let _ = unsafe { call(libc::SYS_close, [register(self.0), 0, 0, 0, 0, 0]) };
    }
}

impl Descriptor {
    /// Opens a file for reading. The descriptor is closed on exec.
    pub(crate) fn open(path: &CStr, flags: i32) -> io::Result<Descriptor> {
        let flags = register(libc::O_RDONLY | libc::O_CLOEXEC | flags);
        let arguments = [register(libc::AT_FDCWD), path.as_ptr().expose_provenance(), flags, 0, 0, 0];
        // SAFETY: the path ends with a zero and outlives the call.
        unsafe { call(libc::SYS_openat, arguments) }.map(|descriptor| Descriptor(int(descriptor)))
    }

    /// Reads the next bytes; returns 0 at the end.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let arguments = [register(self.0), into.as_mut_ptr().expose_provenance(), into.len(), 0, 0, 0];
        // SAFETY: the kernel writes at most `len` bytes into the buffer, which is borrowed mutably.
        unsafe { call(libc::SYS_read, arguments) }
    }

    /// Reads entries of a directory, as getdents64(2) lays them out.
    pub(crate) fn entries(&self, into: &mut [u8]) -> io::Result<usize> {
        let arguments = [register(self.0), into.as_mut_ptr().expose_provenance(), into.len(), 0, 0, 0];
        // SAFETY: the kernel writes at most `len` bytes into the buffer, which is borrowed mutably.
        unsafe { call(libc::SYS_getdents64, arguments) }
    }

    /// Moves back to the beginning.
    pub(crate) fn rewind(&self) -> io::Result<()> {
        // SAFETY: lseek takes numbers only.
        unsafe { call(libc::SYS_lseek, [register(self.0), 0, register(libc::SEEK_SET), 0, 0, 0]) }.map(drop)
    }

    /// Returns the number of names of the file; of a directory, the number of directories in it plus two.
    pub(crate) fn links(&self) -> io::Result<u64> {
        Ok(self.stat()?.st_nlink)
    }

    /// Returns the result of fstat(2).
    pub(crate) fn stat(&self) -> io::Result<libc::stat> {
        // SAFETY: stat is a C struct of integers; all zeros is a value of it.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        let arguments = [register(self.0), (&raw mut stat).expose_provenance(), 0, 0, 0, 0];
        // SAFETY: the kernel writes one `struct stat`, whose layout the C library shares on x86-64.
        unsafe { call(libc::SYS_fstat, arguments) }?;
        Ok(stat)
    }
}

/// The data that this crate's signal carries: `siginfo_t` as rt_sigqueueinfo(2) fills it in.
#[repr(C)]
pub(crate) struct Info {
    signal: i32,
    error: i32,
    pub(crate) code: i32,
    padding: i32,
    pub(crate) pid: i32,
    uid: u32,
    pub(crate) value: u64,
    rest: [u8; 96],
}

const _: () = assert!(size_of::<Info>() == size_of::<libc::siginfo_t>());

/// Queues a signal with a value for one thread of this process.
pub(crate) fn queue(tid: i32, signal: i32, value: u64) -> io::Result<()> {
    let pid = getpid();
    let info = Info { signal, error: 0, code: libc::SI_QUEUE, padding: 0, pid, uid: getuid(), value, rest: [0; 96] };
    let info = (&raw const info).expose_provenance();
    // SAFETY: the kernel reads one siginfo_t, and Info has its size.
    unsafe { call(libc::SYS_rt_tgsigqueueinfo, [register(pid), register(tid), register(signal), info, 0, 0]) }.map(drop)
}

/// A signal's action for rt_sigaction(2): the kernel's layout, not the C library's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Action {
    pub(crate) handler: usize,
    pub(crate) flags: u64,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

/// <asm/signal.h>: the action has the address of the code that a handler returns to.
pub(crate) const SA_RESTORER: u64 = 0x0400_0000;

/// Returns a signal's action. Works for the C library's own signals, which its `sigaction` refuses.
pub(crate) fn action(signal: i32) -> io::Result<Action> {
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let arguments = [register(signal), 0, (&raw mut action).expose_provenance(), size_of::<u64>(), 0, 0];
    // SAFETY: no new action; the kernel writes the old one, whose layout this is, with a mask of 8 bytes.
    unsafe { call(libc::SYS_rt_sigaction, arguments) }?;
    Ok(action)
}

/// Sets a signal's action.
///
/// # Safety
///
/// The handler is a signal handler as the flags describe it, and the restorer calls rt_sigreturn(2).
pub(crate) unsafe fn set_action(signal: i32, action: &Action) -> io::Result<()> {
    let new = ptr::from_ref(action).expose_provenance();
    // SAFETY: the kernel reads one action, whose layout this is; the caller promises that its contents are sound.
    unsafe { call(libc::SYS_rt_sigaction, [register(signal), new, 0, size_of::<u64>(), 0, 0]) }.map(drop)
}

/// Returns a thread's list of robust futexes, get_robust_list(2): the address of its head, 0 if the thread has none.
pub(crate) fn robust_list(tid: i32) -> io::Result<u64> {
    let (mut head, mut length) = (0_u64, 0_usize);
    let (at, len) = ((&raw mut head).expose_provenance(), (&raw mut length).expose_provenance());
    // SAFETY: the kernel writes a pointer and a size into local variables.
    unsafe { call(libc::SYS_get_robust_list, [register(tid), at, len, 0, 0, 0]) }?;
    Ok(head)
}

/// Changes the calling thread's signal mask, as rt_sigprocmask(2) with `how`, and returns the mask before.
pub(crate) fn mask(how: i32, signals: u64) -> io::Result<u64> {
    let mut before = 0_u64;
    let (new, old) = ((&raw const signals).expose_provenance(), (&raw mut before).expose_provenance());
    // SAFETY: the kernel's signal set has 8 bytes; the kernel reads the first set and writes the second.
    unsafe { call(libc::SYS_rt_sigprocmask, [register(how), new, old, size_of::<u64>(), 0, 0]) }?;
    Ok(before)
}

/// Sleeps while the word at `at` is `expected`, at most this long. May return early, without giving a reason.
///
/// A word that is not mapped makes the kernel return an error, and has no worse effect.
pub(crate) fn wait(at: *const u32, expected: u32, limit: Option<Duration>) {
    let operation = register(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
    let time = limit.map(|limit| libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    let time = time.as_ref().map_or(0, |time| ptr::from_ref(time).expose_provenance());
    // A u32 is never wider than a usize here.
    let expected = usize::try_from(expected).unwrap_or_default();
    // SAFETY: the kernel reads the word, if it can, and the time, if there is one, which is a local variable.
    let _ = unsafe { call(libc::SYS_futex, [at.expose_provenance(), operation, expected, time, 0, 0]) };
}

/// Wakes at most `count` of the threads that sleep on the word at `at`.
pub(crate) fn wake(at: *const u32, count: i32) {
    let operation = register(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG);
    // SAFETY: the kernel uses the address as a key only.
    let _ = unsafe { call(libc::SYS_futex, [at.expose_provenance(), operation, register(count), 0, 0, 0]) };
}
