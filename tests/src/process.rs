//! The kernel's data about this process.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use modload::text::Addr;
use modload_fixtures::until;
use modload_threads::Tid;

/// A line of `/proc/self/maps`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
    /// For example `r-xp`.
    pub access: String,
}

impl Mapping {
    /// Returns whether the mapping contains any address of `start..start + len`.
    #[must_use]
    pub fn overlaps(&self, start: Addr, len: u64) -> bool {
        self.start < start.get() + len && start.get() < self.end
    }
}

/// Returns the processor time of this process: the cost of some work, independent of the load of the machine.
///
/// # Panics
/// Without such a clock.
#[must_use]
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in a variable of this function.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// All mappings of this process.
///
/// # Panics
/// Without `/proc`.
#[must_use]
pub fn mappings() -> Vec<Mapping> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let number = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
    let line = |line: &str| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        Mapping { start: number(start), end: number(end), access: rest[..4].to_owned() }
    };
    maps.lines().map(line).collect()
}

/// Returns the number of open descriptors, including the descriptor of this check.
///
/// # Panics
/// Without `/proc`.
#[must_use]
pub fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The bytes at an address.
///
/// # Panics
/// If nothing is mapped there.
#[must_use]
pub fn peek(at: Addr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, at.get()).unwrap();
    bytes
}

/// Has a signal handled by a function, which does nothing that a handler may not.
pub fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    #[expect(clippy::as_conversions, reason = "signal takes the handler's address as an integer")]
    let handler = handler as libc::sighandler_t;
    // SAFETY: a function of the type that the kernel calls.
    unsafe { libc::signal(signal, handler) };
}

/// Waits until a thread sleeps in a system call of this number.
///
/// # Panics
/// The thread never sleeps in that system call.
pub fn until_in(tid: Tid, call: libc::c_long) {
    let (path, begins) = (format!("/proc/self/task/{tid}/syscall"), format!("{call} "));
    until("the thread sleeps in its system call", || fs::read_to_string(&path).unwrap().starts_with(&begins));
}

/// Has a system call fail, from here on, for each thread of this process.
///
/// # Panics
/// Filters of system calls cannot be set.
pub fn deny(call: libc::c_long, errno: i32) {
    let [call, errno] = [u32::try_from(call).unwrap(), 0x0005_0000 | u32::try_from(errno).unwrap()];
    let code = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let mut filter =
        [code(0x20, 0, 0, 0), code(0x15, 0, 1, call), code(0x06, 0, 0, errno), code(0x06, 0, 0, 0x7fff_0000)];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: sets a flag of this process's.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let (mode, all) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: a filter of four well-formed instructions, which the kernel copies. The filter applies to every thread.
    assert_eq!(unsafe { libc::syscall(libc::SYS_seccomp, mode, all, &raw const program) }, 0);
}
