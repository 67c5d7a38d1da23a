//! The frames beneath a thread's first function: the frames of the C library that start the thread.
//!
//! The frames have no names to look up. But they are the same, to the return address, for all threads that are started
//! in the same way. So this module starts a thread, which records the frames beneath its own first function.

use std::ffi::c_void;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::OnceLock;

use thiserror::Error;

use super::walk::{Ended, walk_here};
use crate::x86_64::first_function;

/// The greatest number of frames beneath a thread's first function. glibc needs two: `start_thread` and `clone3`.
const DEEPEST: usize = 8;

/// The frames that a thread finds beneath its first function.
struct Below {
    frames: [u64; DEEPEST],
    count: usize,
}

// A thread's first function: jumps to `look`, and passes on its own return address.
first_function!(first, look);

/// Records the frames from the one that resumes at `from`, if the stack can be walked to its end.
extern "C" fn look(below: *mut c_void, from: u64) -> *mut c_void {
    // SAFETY: the creator of the thread passes this pointer, and uses the value again only when the thread has ended.
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

/// A function that creates a thread: `pthread_create` without attributes, or C11's `thrd_create`, which reaches the
/// first function from another place of the C library. The functions of C11 threads return an int: the lower half of
/// this module's result.
type Create = unsafe fn(&mut libc::pthread_t, *mut c_void) -> Created;

/// Tells whether a thread was created.
enum Created {
    Yes,
    No(i32),
    /// The C library does not have the function.
    NoSuchWay,
}

impl Created {
    fn of(failed: libc::c_int) -> Created {
        if failed == 0 { Created::Yes } else { Created::No(failed) }
    }
}

const WAYS: [(Create, Join); 2] = [(by_pthread, join_pthread), (by_c11, join_c11)];

/// Waits for a thread's end, by the function that belongs to the creating function: tools that watch threads require
/// the matching one.
type Join = unsafe fn(libc::pthread_t);

/// # Safety
/// `below` is a live [`Below`] that nothing else uses until the thread has been joined.
unsafe fn by_pthread(thread: &mut libc::pthread_t, below: *mut c_void) -> Created {
    // SAFETY: the function has the required type; the rest is the caller's promise.
    Created::of(unsafe { libc::pthread_create(thread, ptr::null(), first, below) })
}

/// # Safety
/// [`by_pthread`] has created `thread`, and nothing else joins it.
unsafe fn join_pthread(thread: libc::pthread_t) {
    // SAFETY: the caller guarantees that the thread can be joined, once.
    unsafe { libc::pthread_join(thread, ptr::null_mut()) };
}

/// # Safety
/// [`by_c11`] has created `thread`, and nothing else joins it.
unsafe fn join_c11(thread: libc::pthread_t) {
    type ThreadJoin = unsafe extern "C" fn(libc::pthread_t, *mut libc::c_int) -> libc::c_int;
    // SAFETY: a name that ends with NUL, in the default scope.
    let join = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"thrd_join".as_ptr()) };
    if join.is_null() {
        // SAFETY: as this function's caller guarantees; to the C library, `thread` is one of its threads.
        return unsafe { join_pthread(thread) };
    }
    // SAFETY: the C standard's function of this name.
    let join = unsafe { std::mem::transmute::<*mut c_void, ThreadJoin>(join) };
    // SAFETY: the caller guarantees that the thread can be joined, once.
    unsafe { join(thread, ptr::null_mut()) };
}

/// # Safety
/// As for [`by_pthread`].
unsafe fn by_c11(thread: &mut libc::pthread_t, below: *mut c_void) -> Created {
    type ThreadCreate = unsafe extern "C" fn(
        *mut libc::pthread_t,
        extern "C" fn(*mut c_void) -> *mut c_void,
        *mut c_void,
    ) -> libc::c_int;
    // SAFETY: a name that ends with NUL, in the default scope.
    let create = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"thrd_create".as_ptr()) };
    if create.is_null() {
        return Created::NoSuchWay;
    }
    // SAFETY: the C standard's function of this name, except for the result type of the first function: `thrd_create`
    // reads the lower half of the same register.
    let create = unsafe { std::mem::transmute::<*mut c_void, ThreadCreate>(create) };
    // SAFETY: the caller's promise about `below`; `thread` is writable.
    Created::of(unsafe { create(thread, first, below) })
}

/// The frames with which threads begin.
#[derive(Debug, Default)]
pub struct Starts {
    all: Vec<u64>,
    first: Vec<u64>,
}

impl Starts {
    /// Returns the return addresses beneath the first function of a thread that `pthread_create` or `thrd_create` has
    /// started: the frames with which a thread begins, and no frame of the code that wanted the thread. Sorted.
    #[must_use]
    pub fn all(&self) -> &[u64] {
        &self.all
    }

    /// Returns the addresses of [`Starts::all`] to which a thread's first function itself returns. A thread without
    /// such a frame has not begun its first function yet, has returned from it, or was not started by one of these two
    /// functions. Sorted.
    #[must_use]
    pub fn first(&self) -> &[u64] {
        &self.first
    }
}

/// The frames with which threads begin are not known, because no thread could be started and walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StartsUnknown {
    /// A thread could not be created.
    #[error("a thread that shows how threads begin cannot be created: {}", std::io::Error::from_raw_os_error(*error))]
    NotCreated {
        /// The error's number, as `pthread_create` returns it.
        error: i32,
    },
    /// The thread's stack could not be walked to its end.
    #[error("the stack of a new thread cannot be walked to its end")]
    NotWalked,
}

static STARTS: OnceLock<Starts> = OnceLock::new();

/// Returns the frames with which threads begin.
///
/// The first call starts two threads, and waits until they have ended. Must not be called from a signal handler, or
/// while threads are held. [`super::know_process`] must have been called before.
///
/// # Errors
/// [`StartsUnknown`]. A failure is not remembered: the next call tries again.
pub fn thread_starts() -> Result<&'static Starts, StartsUnknown> {
    if let Some(starts) = STARTS.get() {
        return Ok(starts);
    }
    let starts = learn()?;
    Ok(STARTS.get_or_init(|| starts))
}

/// Returns [`Starts::first`], if it is known; else an empty slice.
pub(super) fn known_first_returns() -> &'static [u64] {
    STARTS.get().map(Starts::first).unwrap_or_default()
}

fn learn() -> Result<Starts, StartsUnknown> {
    let mut starts = Starts::default();
    for (create, join) in WAYS {
        let mut below = Below { frames: [0; DEEPEST], count: 0 };
        let mut thread = 0;
        // SAFETY: `below` lives to the end of this loop's body, and the thread is joined before `below` is read.
        match unsafe { create(&mut thread, (&raw mut below).cast()) } {
            Created::Yes => {}
            Created::NoSuchWay => continue,
            Created::No(error) => return Err(StartsUnknown::NotCreated { error }),
        }
        // SAFETY: the thread has just been started in this way, and nothing else joins it.
        unsafe { join(thread) };
        let frames = &below.frames[..below.count];
        starts.first.push(*frames.first().ok_or(StartsUnknown::NotWalked)?);
        starts.all.extend_from_slice(frames);
    }
    for list in [&mut starts.all, &mut starts.first] {
        list.sort_unstable();
        list.dedup();
    }
    Ok(starts)
}
