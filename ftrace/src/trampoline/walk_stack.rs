//! Walks the thread's current stack while running on another stack: a function may be called on a coroutine's stack of
//! a few KiB, where a walk would not fit.

use std::ffi::c_void;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{mem, ptr, thread};

use modload_threads::frames::{Ended, Frame, ProcessMemory, WalkError, function_at, walk as walk_from, walk_here};

use super::x86_64::{modload_ftrace_aside, registers_of};

/// The size in bytes of a stack for walks. During a walk, every signal that a thread can wait for is blocked, so no
/// handler needs this stack.
pub(super) const STACK: usize = 1 << 16;
/// The room that is left free below the stack.
pub(super) const PAGE: usize = 4096;

/// A walk that is to be made.
struct Walk<F> {
    visit: F,
    walked: Result<Ended, WalkError>,
}

unsafe extern "C" fn run<F: FnMut(&Frame) -> ControlFlow<()>>(data: *mut c_void, registers: *const [u64; 8]) {
    // SAFETY: `walk` passes a `Walk`, and waits for this function.
    let this = unsafe { &mut *data.cast::<Walk<F>>() };
    // SAFETY: the pointer leads to eight registers, above this function's frame.
    let values = unsafe { registers.read() };
    this.walked = walk_from(&registers_of(values), ProcessMemory::own(), &mut this.visit);
}

/// Walks this thread's stack outward from the caller of this function, while running on the stack that ends at `stack`.
/// Async-signal-safe.
///
/// # Errors
/// [`WalkError`]: a frame whose caller is not known.
#[inline(never)]
pub(super) fn walk(stack: *mut u8, visit: impl FnMut(&Frame) -> ControlFlow<()>) -> Result<Ended, WalkError> {
    let before = block();
    let walked = Err(WalkError::NowhereToBegin);
    let mut walk = Walk { visit, walked };
    let function = run_of(&walk);
    // SAFETY: the function accepts its argument, and the stack is this thread's own, of [`STACK`] bytes, and empty:
    // during the walk no signal handler runs that could get here a second time.
    unsafe { modload_ftrace_aside(ptr::from_mut(&mut walk).cast(), function, stack) };
    unblock(&before);
    walk.walked
}

fn run_of<F: FnMut(&Frame) -> ControlFlow<()>>(_: &Walk<F>) -> unsafe extern "C" fn(*mut c_void, *const [u64; 8]) {
    run::<F>
}

/// Blocks all signals except those that an instruction causes.
fn block() -> libc::sigset_t {
    // SAFETY: the type is a set of bits, for which zeros are a value.
    let mut all: libc::sigset_t = unsafe { mem::zeroed() };
    let mut before = all;
    // SAFETY: the set is a local variable.
    unsafe { libc::sigfillset(&raw mut all) };
    for caused in [libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS] {
        // SAFETY: as above.
        unsafe { libc::sigdelset(&raw mut all, caused) };
    }
    // SAFETY: both sets are local variables.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    before
}

fn unblock(before: &libc::sigset_t) {
    // SAFETY: this set was in force before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

/// The outermost functions of stacks that the C library has started: for the process's first thread, and for other
/// threads. Each function has a start and an end address, which are zeros while they are not known.
static STARTS: [[AtomicU64; 2]; 2] = [const { [const { AtomicU64::new(0) }; 2] }; 2];

/// Returns whether an address is in a function in which a thread begins.
pub(super) fn is_start(pc: u64) -> bool {
    let is_in = |[start, end]: &[AtomicU64; 2]| {
        (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&pc.wrapping_sub(1))
    };
    STARTS.iter().any(is_in)
}

/// Determines the functions in which threads begin, if they are not known yet: a new thread walks its own stack.
/// Without these functions, calls of a thread after a `longjmp` are not recorded until the old return address is
/// overwritten. Not for signal handlers.
pub(crate) fn find_thread_starts() {
    let [first, others] = &STARTS;
    let know = |of: &[AtomicU64; 2], function: Option<std::ops::Range<u64>>| {
        let Some(function) = function else { return };
        of[0].store(function.start, Ordering::Relaxed);
        of[1].store(function.end, Ordering::Relaxed);
    };
    // SAFETY: the call only reads a word of the auxiliary vector.
    know(first, function_at(unsafe { libc::getauxval(libc::AT_ENTRY) }));
    if others[1].load(Ordering::Relaxed) != 0 {
        return;
    }
    let look = || {
        let mut outermost = 0;
        let walked = walk_here(|frame| {
            outermost = frame.pc;
            ControlFlow::Continue(())
        });
        if walked == Ok(Ended::Outermost) { function_at(outermost.wrapping_sub(1)) } else { None }
    };
    let thread = thread::Builder::new().name("modload-start".into()).stack_size(4 * STACK).spawn(look);
    know(others, thread.ok().and_then(|thread| thread.join().ok()).flatten());
}
