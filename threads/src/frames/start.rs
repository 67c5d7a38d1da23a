//! The frames below a thread's first function: those of the C library that start it.
//!
//! They have no names that could be asked for. But they are the same for each thread that is started in the same way, to
//! the return address: so a thread of ours is started, and looks below itself.

use std::arch::naked_asm;
use std::ffi::c_void;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::OnceLock;

use super::walk::{Ended, walk_here};

/// How deep below its first function a thread may begin. glibc needs two frames: `start_thread` and `clone3`.
const DEEPEST: usize = 8;

/// What a thread finds below itself.
struct Below {
    frames: [u64; DEEPEST],
    count: usize,
}

/// A thread's first function: goes on in [`look`], with what it will return to.
#[unsafe(naked)]
extern "C" fn first(below: *mut c_void) -> *mut c_void {
    naked_asm!("mov rsi, [rsp]", "jmp {look}", look = sym look)
}

/// Notes the frames from the one that goes on at `from`, if the stack can be walked to its end.
extern "C" fn look(below: *mut c_void, from: u64) -> *mut c_void {
    // SAFETY: whoever starts the thread passes this, and touches it again only when the thread has ended.
    let below: &mut Below = unsafe { &mut *below.cast() };
    let mut is_below = false;
    let walked = walk_here(|frame| {
        is_below |= frame.pc == from;
        if is_below {
            let Some(place) = below.frames.get_mut(below.count) else { return ControlFlow::Break(()) };
            *place = frame.pc;
            below.count += 1;
        }
        ControlFlow::Continue(())
    });
    if walked != Ok(Ended::Outermost) {
        below.count = 0;
    }
    ptr::null_mut()
}

/// `pthread_create` without attributes, and C11's `thrd_create`, which the C library calls from another place. That one's
/// functions return an int: the lower half of ours.
type Create = unsafe fn(&mut libc::pthread_t, *mut c_void) -> Option<libc::c_int>;
const WAYS: [Create; 2] = [by_pthread, by_c11];

/// # Safety
/// `below` is a [`Below`] that lives, and that nobody uses, until the thread has been joined.
unsafe fn by_pthread(thread: &mut libc::pthread_t, below: *mut c_void) -> Option<libc::c_int> {
    // SAFETY: the function has the type that is asked for; the rest is the caller's promise.
    Some(unsafe { libc::pthread_create(thread, ptr::null(), first, below) })
}

/// # Safety
/// As for [`by_pthread`].
unsafe fn by_c11(thread: &mut libc::pthread_t, below: *mut c_void) -> Option<libc::c_int> {
    type ThreadCreate = unsafe extern "C" fn(
        *mut libc::pthread_t,
        extern "C" fn(*mut c_void) -> *mut c_void,
        *mut c_void,
    ) -> libc::c_int;
    // SAFETY: a name that ends with NUL, in the default scope.
    let create = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"thrd_create".as_ptr()) };
    if create.is_null() {
        return None;
    }
    // SAFETY: the C standard's function of this name, but for the result of what it starts, of which it reads the lower
    // half of the same register.
    let create = unsafe { std::mem::transmute::<*mut c_void, ThreadCreate>(create) };
    // SAFETY: the caller's promise.
    Some(unsafe { create(thread, first, below) })
}

/// The frames by which threads begin.
#[derive(Debug, Default)]
struct Starts {
    all: Vec<u64>,
    /// Of each way, the one that is nearest to the thread's first function.
    first: Vec<u64>,
}

fn starts() -> &'static Starts {
    static STARTS: OnceLock<Starts> = OnceLock::new();
    STARTS.get_or_init(|| {
        let mut starts = Starts::default();
        for create in WAYS {
            let mut below = Below { frames: [0; DEEPEST], count: 0 };
            let mut thread = 0;
            // SAFETY: it lives to the end of this loop's body, and the thread is joined before it is looked at.
            let failed = unsafe { create(&mut thread, (&raw mut below).cast()) };
            if failed == Some(0) {
                // SAFETY: the thread has just been started, and nobody else joins it.
                unsafe { libc::pthread_join(thread, ptr::null_mut()) };
                let frames = &below.frames[..below.count];
                starts.all.extend_from_slice(frames);
                starts.first.extend(frames.first());
            }
        }
        for list in [&mut starts.all, &mut starts.first] {
            list.sort_unstable();
            list.dedup();
        }
        starts
    })
}

/// The return addresses below the first function of a thread that `pthread_create` or `thrd_create` has started: the
/// frames by which a thread begins, and nothing of whoever wanted it. Sorted. Empty if no thread can be started or walked.
///
/// Starts two threads when it is first called, and waits until they have ended. Not for signal handlers, and not while
/// threads are held. [`super::know_process`] has been called before.
pub fn thread_starts() -> &'static [u64] {
    &starts().all
}

/// Those of [`thread_starts`] that a thread's first function itself returns to: a thread without such a frame has not
/// begun it yet, or has returned from it, or was not started so. Sorted.
pub fn first_returns() -> &'static [u64] {
    &starts().first
}
