//! The boundary between the host and code that may throw: each exception or panic from beyond the boundary ends here,
//! and gets a name.
//!
//! Rust's `catch_unwind` catches panics only. At an exception of another language, `catch_unwind` ends the process. So
//! between `catch_unwind` and a module there is the frame of a function of a few instructions with a personality
//! routine of its own (Itanium C++ ABI, exception handling, 1.3 to 1.6):
//!
//! - That frame handles an exception of another language: describes the exception, and deletes it as its runtime
//!   requires.
//! - A panic of this program's own standard library passes through to `catch_unwind`. A panic of another standard
//!   library (a module's own) would end the process in `catch_unwind`, so the frame handles it like an exception; the
//!   panic's memory is not freed.
//! - A forced unwinding of glibc, for a cancelled thread, ends there, too: the inner frames have been unwound, and the
//!   caller undoes the work that it had begun. [`end_if_cancelled`] continues the cancellation.
//! - [`leave`] works like `pthread_exit`, but only up to that frame.

mod cxx;

use std::any::Any;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::frames::{function_at, thread_starts, walk_here};
use crate::task::Tid;
use crate::x86_64::{EXCEPTION_REGISTER, boundary_frame};

/// The way in which a function was left other than by returning. The exception or panic is caught and deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Thrown {
    /// A panic of this process's Rust code, with its message if it has one.
    Panic(String),
    /// A panic of Rust code that has a standard library of its own. Only that library can read the message. The panic
    /// stays in memory: deleting it is an error for that library.
    OtherPanic,
    /// An exception of another language.
    Exception(Exception),
    /// The code called `pthread_exit` on a thread that the code must not end.
    ThreadExit,
    /// The thread was cancelled, or other code ended it by force: all frames up to the boundary have been unwound for
    /// that.
    Cancelled,
}

/// An exception of another language than Rust.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vendor and language as eight letters, escaped: `GNUCC++\\x00` for g++, `CLNGC++\\x00` for clang's libc++. Zeros
    /// at the end are left out.
    pub class: String,
    /// The type of a C++ exception, escaped: as C++ writes the type, or as its symbol if the process has no demangler.
    pub type_name: Option<String>,
    /// The result of `what()`, for a `std::exception` of libstdc++. Escaped.
    pub what: Option<String>,
}

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thrown::Panic(message) => write!(f, "a panic: {message}"),
            Thrown::OtherPanic => {
                f.write_str("a panic of Rust code with a standard library of its own, whose message cannot be read")
            }
            Thrown::Exception(exception) => exception.fmt(f),
            Thrown::ThreadExit => f.write_str("pthread_exit, on a thread that the module has not created"),
            Thrown::Cancelled => f.write_str("the cancellation of its thread"),
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.type_name, &self.what) {
            (Some(name), Some(what)) => write!(f, "an exception of type {name}: {what}"),
            (Some(name), None) => write!(f, "an exception of type {name}"),
            (None, _) => write!(f, "an exception of the class {}", self.class),
        }
    }
}

/// The way in which a function was left, and the place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// The way.
    pub thrown: Thrown,
    /// Return addresses on the stack at the throw, the innermost first; empty if the stack is not known.
    pub from: Vec<u64>,
}

/// The number of return addresses that are kept.
const KEPT: usize = 32;

/// The place of a throw.
#[derive(Clone, Copy)]
struct From {
    frames: [u64; KEPT],
    count: usize,
}

impl From {
    const NOWHERE: From = From { frames: [0; KEPT], count: 0 };

    /// Returns the frames of this thread, as many as fit.
    fn here() -> From {
        let mut from = From::NOWHERE;
        // The frames that a walk found before it ended early are right.
        let _ = walk_here(|frame| {
            let Some(place) = from.frames.get_mut(from.count) else { return ControlFlow::Break(()) };
            *place = frame.pc;
            from.count += 1;
            ControlFlow::Continue(())
        });
        from
    }
}

/// A boundary around code that runs. The boundary lies in the frame of [`guard`], which is an outer frame of all code
/// that was called.
struct Boundary {
    /// The stack pointer within `enter`, where its saved registers are.
    rsp: u64,
    /// The place of the throw, once something was thrown.
    from: From,
    /// The boundary that this thread passed before.
    outer: *mut Boundary,
}

thread_local! {
    /// The boundary that this thread entered last and has not returned to.
    static INNERMOST: Cell<*mut Boundary> = const { Cell::new(ptr::null_mut()) };
    /// Whether a cancellation of this thread has ended at a boundary.
    static CANCELLED: Cell<bool> = const { Cell::new(false) };
}

/// Continues the cancellation of this thread that ended at a boundary, if there was one, if no boundary is beneath any
/// more, and if the thread's own frames allow forced unwinding: the frames of the process's first thread and of Rust's
/// `std::thread` end the process when they are unwound by force. In such a thread, the function returns as if the
/// thread had not been cancelled.
///
/// Unwinds the frames of the caller by force, with their drops.
pub fn end_if_cancelled() {
    if CANCELLED.get() && !is_beneath() && !Tid::current().is_first() && !is_std_thread() {
        CANCELLED.set(false);
        // SAFETY: the thread was cancelled, so its frames must be ready to end in this way.
        unsafe { pthread_exit(CANCELED) };
    }
}

/// glibc's `PTHREAD_CANCELED`.
const CANCELED: *mut c_void = ptr::without_provenance_mut(usize::MAX);

unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut c_void) -> !;
}

/// Returns whether Rust's standard library started this thread. A stack that cannot be walked counts as a yes.
fn is_std_thread() -> bool {
    let std = std::thread::Builder::new().spawn(started_by).ok().and_then(|thread| thread.join().ok()).flatten();
    let here = started_by();
    std.is_none() || here.is_none() || std == here
}

/// Returns the outermost function of this thread.
fn started_by() -> Option<Range<u64>> {
    let starts = thread_starts().ok()?;
    let (mut inner, mut first) = (None, None);
    let _ = walk_here(|frame| {
        if starts.first().binary_search(&frame.pc).is_ok() {
            first = inner;
            return ControlFlow::Break(());
        }
        inner = Some(frame.inside());
        ControlFlow::Continue(())
    });
    function_at(first?)
}

/// Runs code that may call code that throws, with a frame beneath that catches.
///
/// # Errors
/// [`Left`], if the code was left other than by returning.
pub fn guard<R, F: FnOnce() -> R>(run: F) -> Result<R, Left> {
    learn_own_panics();
    pass(run)
}

fn pass<R, F: FnOnce() -> R>(run: F) -> Result<R, Left> {
    let mut job = Job { run: Some(run), result: None };
    let mut place = Boundary { rsp: 0, from: From::NOWHERE, outer: INNERMOST.get() };
    let place = &raw mut place;
    INNERMOST.set(place);
    // SAFETY: `place` is a local variable of this function.
    let rsp = unsafe { &raw mut (*place).rsp };
    // SAFETY: `perform` takes a job of this type, which this function owns during the call, and unwinds by panics and
    // foreign exceptions only. `rsp` is a field of the local `place`.
    let caught = catch_unwind(AssertUnwindSafe(|| unsafe { enter(perform::<R, F>, (&raw mut job).cast(), rsp) }));
    // SAFETY: `place` is a local variable, and the called code is left, so no other reference is in use.
    let Boundary { from, outer, .. } = unsafe { place.read() };
    INNERMOST.set(outer);
    let left = |thrown, from: &[u64]| Err(Left { thrown, from: from.to_vec() });
    let from = from.frames.get(..from.count).unwrap_or_default();
    let exception = match caught {
        Ok(exception) => exception,
        Err(panic) => return left(Thrown::Panic(message(&*panic)), from),
    };
    if exception.is_null() {
        // The function has returned, and so it has stored its result.
        return match job.result {
            Some(result) => Ok(result),
            None => left(Thrown::Cancelled, &[]),
        };
    }
    // SAFETY: the exception is one that `personality` had `enter` return, or one that `leave` has thrown.
    let thrown = unsafe { take(exception) };
    if thrown == Thrown::Cancelled {
        CANCELLED.set(true);
    }
    left(thrown, from)
}

/// # Safety
/// `exception` was caught, and nothing else refers to it.
unsafe fn take(exception: *mut UnwindException) -> Thrown {
    // SAFETY: every exception begins with a header.
    let class = unsafe { (*exception).class };
    match class {
        LEAVING => {
            // SAFETY: `leave` made the exception with `Box::into_raw`, and the frame of `leave` is gone.
            drop(unsafe { Box::from_raw(exception) });
            Thrown::ThreadExit
        }
        // The panic's library would end the process: it deletes only panics that it caught itself.
        RUST => Thrown::OtherPanic,
        FORCED => Thrown::Cancelled,
        class => {
            // SAFETY: as for this function; the exception lives until it is deleted below.
            let (type_name, what) = unsafe { cxx::describe(exception, class) };
            // SAFETY: nothing else uses the exception any more.
            unsafe { _Unwind_DeleteException(exception) };
            Thrown::Exception(Exception { class: class_name(class), type_name, what })
        }
    }
}

/// Returns whether a boundary is beneath this thread's frames. Only then can [`leave`] be called.
#[must_use]
pub fn is_beneath() -> bool {
    !INNERMOST.get().is_null()
}

/// Leaves all frames up to the innermost boundary of this thread, as `pthread_exit` leaves all frames up to the
/// thread's beginning: frames are unwound by force. The frames' C++ destructors run, and `catch (...)` cannot stop the
/// unwinding. The call that entered the boundary returns [`Thrown::ThreadExit`].
///
/// # Safety
/// As for `pthread_exit`: the frames in between may be unwound by force. [`is_beneath`] returns `true`.
pub unsafe fn leave() -> ! {
    let place = INNERMOST.get();
    // SAFETY: the boundary is beneath this frame, and its place lives until the boundary is left.
    unsafe { (*place).from = From::here() };
    let exception = Box::into_raw(Box::new(UnwindException { class: LEAVING, cleanup: None, private: [0; 2] }));
    // SAFETY: the exception is a new one; `stop` gets the place, which lives until the boundary is left.
    unsafe { _Unwind_ForcedUnwind(exception, stop, place.cast()) };
    // The unwinder found no call frame information, so it cannot continue.
    std::process::abort()
}

/// The callback that the unwinder calls before each frame that [`leave`] unwinds.
unsafe extern "C-unwind" fn stop(
    _version: c_int,
    _actions: c_int,
    _class: u64,
    exception: *mut UnwindException,
    context: *mut c_void,
    place: *mut c_void,
) -> c_int {
    // SAFETY: `place` is the pointer that `leave` has passed on.
    let rsp = unsafe { (*place.cast::<Boundary>()).rsp };
    // SAFETY: `context` is the unwinder's context of this call.
    if unsafe { _Unwind_GetCFA(context) } >= rsp {
        // SAFETY: this is the frame of `enter`, and `rsp` is its stack pointer; the inner frames are unwound.
        unsafe { land(exception, rsp) };
    }
    NO_REASON
}

struct Job<R, F> {
    run: Option<F>,
    result: Option<R>,
}

unsafe extern "C-unwind" fn perform<R, F: FnOnce() -> R>(job: *mut c_void) {
    // SAFETY: `guard` passes its own job, and does not use the job until this function has returned.
    let job = unsafe { &mut *job.cast::<Job<R, F>>() };
    if let Some(run) = job.run.take() {
        job.result = Some(run());
    }
}

/// Returns the letters of a class, from the most significant byte on; a byte that is not a letter is escaped.
fn class_name(class: u64) -> String {
    let bytes = class.to_be_bytes();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..end].escape_ascii().to_string()
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("of no text").to_owned()
}

/// `struct _Unwind_Exception`: the header of every exception (Itanium C++ ABI, exception handling, 1.2.1).
#[repr(C, align(16))]
pub(super) struct UnwindException {
    class: u64,
    cleanup: Option<unsafe extern "C" fn(c_int, *mut UnwindException)>,
    private: [u64; 2],
}

type Stop = unsafe extern "C-unwind" fn(c_int, c_int, u64, *mut UnwindException, *mut c_void, *mut c_void) -> c_int;

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_DeleteException(exception: *mut UnwindException);
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn _Unwind_SetIP(context: *mut c_void, at: usize);
    fn _Unwind_GetCFA(context: *mut c_void) -> u64;
}

#[link(name = "gcc_s")]
unsafe extern "C-unwind" {
    fn _Unwind_ForcedUnwind(exception: *mut UnwindException, stop: Stop, argument: *mut c_void) -> c_int;
}

unsafe extern "C-unwind" {
    /// Stores its own stack pointer at `rsp`, and calls `function(argument)`. Returns null, or the exception that left
    /// the function.
    #[link_name = "modload_threads_enter"]
    fn enter(
        function: unsafe extern "C-unwind" fn(*mut c_void),
        argument: *mut c_void,
        rsp: *mut u64,
    ) -> *mut UnwindException;
}

unsafe extern "C" {
    /// The place where `enter` continues with an exception; not a function.
    #[link_name = "modload_threads_caught"]
    static CAUGHT: u8;
    /// Makes `enter`, whose stack pointer is `rsp`, return `exception`.
    #[link_name = "modload_threads_land"]
    fn land(exception: *mut UnwindException, rsp: u64) -> !;
}

boundary_frame!(personality);

// Actions and results: Itanium C++ ABI, 1.2.
const SEARCH_PHASE: c_int = 1;
const HANDLER_FRAME: c_int = 4;
const FORCE_UNWIND: c_int = 8;
const NO_REASON: c_int = 0;
const HANDLER_FOUND: c_int = 6;
const INSTALL_CONTEXT: c_int = 7;
const CONTINUE_UNWIND: c_int = 8;
const FATAL_PHASE1_ERROR: c_int = 3;

/// The class of Rust's panics. The class's letters lie in memory in this order; the classes of other runtimes begin with the
/// highest byte.
const RUST: u64 = u64::from_ne_bytes(*b"MOZ\0RUST");
/// The class of the exception that [`leave`] throws.
const LEAVING: u64 = u64::from_be_bytes(*b"MODLOAD\0");
/// The class of the exception by which glibc unwinds a thread.
const FORCED: u64 = 0;

/// The word behind the header of a panic of this program's own standard library: the address of a variable of that
/// library, by which the library recognises its own panics. 0: not known yet.
static OWN_PANIC: AtomicUsize = AtomicUsize::new(0);

/// Panics once, so that `personality` learns the mark of this library's panics.
fn learn_own_panics() {
    if OWN_PANIC.load(Ordering::Relaxed) == 0 {
        let _ = pass(|| std::panic::resume_unwind(Box::new(())));
    }
}

/// Returns whether a panic is of this program's own standard library: only that library can catch the panic. The first
/// panic that this function sees counts as an own one, and its mark is stored: [`guard`] throws the first panic itself.
///
/// # Safety
/// `exception` is a panic of Rust.
unsafe fn is_own_panic(exception: *const UnwindException) -> bool {
    // SAFETY: behind the header, each version of Rust's standard library has at least one word more.
    let mark = unsafe { exception.wrapping_add(1).cast::<usize>().read() };
    match OWN_PANIC.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => true,
        Err(own) => own == mark,
    }
}

unsafe extern "C" fn personality(
    version: c_int,
    actions: c_int,
    class: u64,
    exception: *mut UnwindException,
    context: *mut c_void,
) -> c_int {
    if version != 1 {
        return FATAL_PHASE1_ERROR;
    }
    let is_forced = actions & FORCE_UNWIND != 0;
    // SAFETY: the class says that the exception is a panic of Rust.
    let passes = class == RUST && !is_forced && unsafe { is_own_panic(exception) };
    if actions & SEARCH_PHASE != 0 {
        // Nothing has been unwound yet.
        let place = INNERMOST.get();
        if !place.is_null() {
            // SAFETY: the innermost boundary is the one whose frame this is: an inner boundary would have caught the
            // exception.
            unsafe { (*place).from = From::here() };
        }
        return if passes { CONTINUE_UNWIND } else { HANDLER_FOUND };
    }
    if passes {
        return CONTINUE_UNWIND;
    }
    if actions & HANDLER_FRAME == 0 && !is_forced {
        return CONTINUE_UNWIND;
    }
    // SAFETY: `context` is the unwinder's context, in the phase in which registers may be set.
    unsafe { _Unwind_SetGR(context, EXCEPTION_REGISTER, exception.expose_provenance()) };
    // SAFETY: as above. The address lies in `enter`, and the frame of `enter` is there as it is after its call.
    unsafe { _Unwind_SetIP(context, (&raw const CAUGHT).expose_provenance()) };
    INSTALL_CONTEXT
}

#[cfg(test)]
mod tests {
    use super::{Thrown, class_name, guard};

    #[test]
    fn what_returns_has_its_result() {
        let text = String::from("text");
        assert_eq!(guard(|| text.len()), Ok(4));
        assert_eq!(guard(|| guard(|| text)), Ok(Ok("text".to_owned())));
    }

    #[test]
    fn a_panic_is_caught_with_its_message() {
        let panics = |text: &'static str| {
            guard(|| {
                if !text.is_empty() {
                    std::panic::resume_unwind(Box::new(text))
                }
            })
        };
        assert_eq!(panics("here").unwrap_err().thrown, Thrown::Panic("here".into()));
        assert_eq!(panics(""), Ok(()));
        let of_no_text: Result<(), _> = guard(|| std::panic::resume_unwind(Box::new(7)));
        assert_eq!(of_no_text.unwrap_err().thrown.to_string(), "a panic: of no text");
    }

    #[test]
    fn classes_are_named_by_their_letters() {
        assert_eq!(class_name(u64::from_be_bytes(*b"GNUCC++\0")), "GNUCC++");
        assert_eq!(class_name(u64::from_be_bytes(*b"GNUCC++\x01")), "GNUCC++\\x01");
        assert_eq!(class_name(0), "");
    }
}
