//! The boundary between us and code that may throw: whatever is thrown beyond it ends here, and has a name.
//!
//! Rust's `catch_unwind` catches panics only; at an exception of another language it ends the process. So between it and
//! a module stands a function of a few instructions with a personality routine of its own (Itanium C++ ABI, exception
//! handling, 1.3 to 1.6):
//!
//! - An exception of another language is handled there, described, and deleted as its runtime wants.
//! - A panic of this program's own standard library passes through, to be caught by `catch_unwind`. One of another standard library (a
//!   module's own) would end the process there, so it is handled like an exception; its memory is not freed.
//! - What glibc unwinds by force, a thread that is cancelled, ends there, too: the frames above have been unwound, and the caller takes
//!   back what it had begun. [`end_if_cancelled`] goes on with it.
//! - [`leave`] is `pthread_exit` up to there.

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

/// How a function was left other than by returning. What it has thrown is caught and deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Thrown {
    /// A panic of this process's Rust code, with its message if it has one.
    Panic(String),
    /// A panic of Rust code that has a standard library of its own, whose message only that can read. It stays in memory: to
    /// delete it is an error of that library's.
    OtherPanic,
    /// An exception of another language.
    Exception(Exception),
    /// `pthread_exit` was called, on a thread that is not the caller's to end.
    ThreadExit,
    /// The thread was cancelled, or something ended it by force: everything up to here has been unwound for that.
    Cancelled,
}

/// An exception of another language than Rust.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vendor and language as eight letters, escaped: `GNUCC++\\x00` for g++, `CLNGC++\\x00` for clang's libc++. Zeros at the end are
    /// left out.
    pub class: String,
    /// Of C++: its type, as C++ writes it, or as its symbol has it if there is nothing that translates it. Escaped.
    pub type_name: Option<String>,
    /// Of a `std::exception` of libstdc++: what its `what()` says. Escaped.
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

/// How a function was left, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// How.
    pub thrown: Thrown,
    /// Return addresses on the stack when it was thrown, the innermost first; none if that is not known.
    pub from: Vec<u64>,
}

/// How many return addresses are kept.
const KEPT: usize = 32;

/// Where something was thrown.
#[derive(Clone, Copy)]
struct From {
    frames: [u64; KEPT],
    count: usize,
}

impl From {
    const NOWHERE: From = From { frames: [0; KEPT], count: 0 };

    /// The frames of this thread, as many as there is room for.
    fn here() -> From {
        let mut from = From::NOWHERE;
        // What was seen before a walk ended early is right.
        let _ = walk_here(|frame| {
            let Some(place) = from.frames.get_mut(from.count) else { return ControlFlow::Break(()) };
            *place = frame.pc;
            from.count += 1;
            ControlFlow::Continue(())
        });
        from
    }
}

/// A boundary that is being passed. It lies in the frame of [`guard`], which is below everything that was called.
struct Place {
    /// The stack pointer within `enter`, where its saved registers are.
    rsp: u64,
    /// Where something was thrown, once it was.
    from: From,
    /// The boundary that this thread passed before.
    outer: *mut Place,
}

thread_local! {
    /// The boundary that this thread passed last and has not come back to.
    static INNERMOST: Cell<*mut Place> = const { Cell::new(ptr::null_mut()) };
    /// Whether a cancellation of this thread has ended at a boundary.
    static CANCELLED: Cell<bool> = const { Cell::new(false) };
}

/// Goes on with the cancellation of this thread that has ended at a boundary, if there was one, if no boundary is beneath any more, and if
/// the thread's own frames allow it: those of the process's first thread and of Rust's `std::thread` end the process when they
/// are unwound by force. Then the thread goes on as if it had not been cancelled.
///
/// The frames of the caller are unwound by force, with their drops.
pub fn end_if_cancelled() {
    if CANCELLED.get() && !is_beneath() && !Tid::current().is_first() && !is_std_thread() {
        CANCELLED.set(false);
        // SAFETY: the thread was cancelled, and wants to end so.
        unsafe { pthread_exit(CANCELED) };
    }
}

/// glibc's `PTHREAD_CANCELED`.
const CANCELED: *mut c_void = ptr::without_provenance_mut(usize::MAX);

unsafe extern "C-unwind" {
    fn pthread_exit(value: *mut c_void) -> !;
}

/// Whether Rust's standard library, or something that cannot be walked, has started this thread.
fn is_std_thread() -> bool {
    let std = std::thread::Builder::new().spawn(started_by).ok().and_then(|thread| thread.join().ok()).flatten();
    let here = started_by();
    std.is_none() || here.is_none() || std == here
}

/// The function that is the first of this thread.
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

/// Runs something that may call code that throws; a frame that catches is put beneath it.
///
/// # Errors
/// [`Left`], if it was left other than by returning.
pub fn guard<R, F: FnOnce() -> R>(run: F) -> Result<R, Left> {
    learn_own_panics();
    pass(run)
}

fn pass<R, F: FnOnce() -> R>(run: F) -> Result<R, Left> {
    let mut job = Job { run: Some(run), result: None };
    let mut place = Place { rsp: 0, from: From::NOWHERE, outer: INNERMOST.get() };
    let place = &raw mut place;
    INNERMOST.set(place);
    // SAFETY: a local variable of ours.
    let rsp = unsafe { &raw mut (*place).rsp };
    // SAFETY: `perform` takes a job of this type, which is ours while the call lasts, and unwinds by panics and foreign
    // exceptions only. `rsp` is a word of ours.
    let caught = catch_unwind(AssertUnwindSafe(|| unsafe { enter(perform::<R, F>, (&raw mut job).cast(), rsp) }));
    // SAFETY: ours, and what was called is left.
    let Place { from, outer, .. } = unsafe { place.read() };
    INNERMOST.set(outer);
    let left = |thrown, from: &[u64]| Err(Left { thrown, from: from.to_vec() });
    let from = from.frames.get(..from.count).unwrap_or_default();
    let exception = match caught {
        Ok(exception) => exception,
        Err(panic) => return left(Thrown::Panic(message(&*panic)), from),
    };
    if exception.is_null() {
        // It has returned, and so it has left its result.
        return match job.result {
            Some(result) => Ok(result),
            None => left(Thrown::Cancelled, &[]),
        };
    }
    // SAFETY: what `personality` has had caught, or `leave` has thrown.
    let thrown = unsafe { take(exception) };
    if thrown == Thrown::Cancelled {
        CANCELLED.set(true);
    }
    left(thrown, from)
}

/// # Safety
/// An exception that was caught, and that nothing else refers to.
unsafe fn take(exception: *mut Header) -> Thrown {
    // SAFETY: all exceptions begin with a header.
    let class = unsafe { (*exception).class };
    match class {
        LEAVING => {
            // SAFETY: made by `leave`, which was left.
            drop(unsafe { Box::from_raw(exception) });
            Thrown::ThreadExit
        }
        // Its library deletes no panic that was not caught by itself: it would end the process.
        RUST => Thrown::OtherPanic,
        FORCED => Thrown::Cancelled,
        class => {
            // SAFETY: as for this function; it lives until it is deleted below.
            let (type_name, what) = unsafe { cxx::describe(exception, class) };
            // SAFETY: nothing else uses it any more.
            unsafe { _Unwind_DeleteException(exception) };
            Thrown::Exception(Exception { class: class_name(class), type_name, what })
        }
    }
}

/// Whether a boundary is beneath this thread's frames: then [`leave`] can be called.
#[must_use]
pub fn is_beneath() -> bool {
    !INNERMOST.get().is_null()
}

/// Leaves everything up to the innermost boundary of this thread, as `pthread_exit` leaves everything up to the thread's beginning:
/// frames are unwound by force, which C++ destructors notice and `catch (...)` cannot hold up. The call that passed the boundary
/// has [`Thrown::ThreadExit`] for its result.
///
/// # Safety
/// As for `pthread_exit`: the frames in between may be unwound by force. [`is_beneath`].
pub unsafe fn leave() -> ! {
    let place = INNERMOST.get();
    // SAFETY: the boundary is beneath us, and its place lives until it is left.
    unsafe { (*place).from = From::here() };
    let exception = Box::into_raw(Box::new(Header { class: LEAVING, cleanup: None, private: [0; 2] }));
    // SAFETY: the exception is a new one; `stop` is told the place, which lives until it is left.
    unsafe { _Unwind_ForcedUnwind(exception, stop, place.cast()) };
    // There is no frame that says how to go on.
    std::process::abort()
}

/// Called before each frame that is unwound by [`leave`].
unsafe extern "C-unwind" fn stop(
    _version: c_int,
    _actions: c_int,
    _class: u64,
    exception: *mut Header,
    context: *mut c_void,
    place: *mut c_void,
) -> c_int {
    // SAFETY: the place that `leave` has passed on.
    let rsp = unsafe { (*place.cast::<Place>()).rsp };
    // SAFETY: the unwinder's context, of this call.
    if unsafe { _Unwind_GetCFA(context) } >= rsp {
        // SAFETY: the frame is that of `enter`, whose stack pointer this is; the frames above it are unwound.
        unsafe { land(exception, rsp) };
    }
    NO_REASON
}

struct Job<R, F> {
    run: Option<F>,
    result: Option<R>,
}

unsafe extern "C-unwind" fn perform<R, F: FnOnce() -> R>(job: *mut c_void) {
    // SAFETY: `guard` passes its own job, and does not touch it until we are done.
    let job = unsafe { &mut *job.cast::<Job<R, F>>() };
    if let Some(run) = job.run.take() {
        job.result = Some(run());
    }
}

/// The letters of a class, from the most significant byte on; what is not a letter is escaped.
fn class_name(class: u64) -> String {
    let bytes = class.to_be_bytes();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..end].escape_ascii().to_string()
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("of no text").to_owned()
}

/// `struct _Unwind_Exception`: what every exception begins with (Itanium C++ ABI, exception handling, 1.2.1).
#[repr(C, align(16))]
pub(super) struct Header {
    class: u64,
    cleanup: Option<unsafe extern "C" fn(c_int, *mut Header)>,
    private: [u64; 2],
}

type Stop = unsafe extern "C-unwind" fn(c_int, c_int, u64, *mut Header, *mut c_void, *mut c_void) -> c_int;

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_DeleteException(exception: *mut Header);
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn _Unwind_SetIP(context: *mut c_void, at: usize);
    fn _Unwind_GetCFA(context: *mut c_void) -> u64;
}

#[link(name = "gcc_s")]
unsafe extern "C-unwind" {
    fn _Unwind_ForcedUnwind(exception: *mut Header, stop: Stop, argument: *mut c_void) -> c_int;
}

unsafe extern "C-unwind" {
    /// Calls `function(argument)`, after its stack pointer was stored at `rsp`. Returns null, or what it was left by.
    #[link_name = "modload_threads_enter"]
    fn enter(function: unsafe extern "C-unwind" fn(*mut c_void), argument: *mut c_void, rsp: *mut u64) -> *mut Header;
}

unsafe extern "C" {
    /// Where `enter` goes on with an exception; not a function.
    #[link_name = "modload_threads_caught"]
    static CAUGHT: u8;
    /// Has `enter`, whose stack pointer is `rsp`, return `exception`.
    #[link_name = "modload_threads_land"]
    fn land(exception: *mut Header, rsp: u64) -> !;
}

std::arch::global_asm!(
    ".pushsection .text.modload_threads_enter, \"ax\", @progbits",
    ".balign 16",
    ".hidden modload_threads_enter",
    ".globl modload_threads_enter",
    ".type modload_threads_enter, @function",
    "modload_threads_enter:",
    ".cfi_startproc",
    // DW_EH_PE_pcrel | DW_EH_PE_sdata4.
    ".cfi_personality 0x1b, {personality}",
    // All that a caller relies on is on the stack: `land` comes from anywhere.
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "push rbx",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset rbx, -24",
    "push r12",
    ".cfi_def_cfa_offset 32",
    ".cfi_offset r12, -32",
    "push r13",
    ".cfi_def_cfa_offset 40",
    ".cfi_offset r13, -40",
    "push r14",
    ".cfi_def_cfa_offset 48",
    ".cfi_offset r14, -48",
    "push r15",
    ".cfi_def_cfa_offset 56",
    ".cfi_offset r15, -56",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 64",
    "mov [rdx], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "xor eax, eax",
    ".hidden modload_threads_caught",
    ".globl modload_threads_caught",
    "modload_threads_caught:",
    // The exception is in rax, where `personality` or `land` has put it, or null.
    "add rsp, 8",
    ".cfi_def_cfa_offset 56",
    "pop r15",
    ".cfi_def_cfa_offset 48",
    "pop r14",
    ".cfi_def_cfa_offset 40",
    "pop r13",
    ".cfi_def_cfa_offset 32",
    "pop r12",
    ".cfi_def_cfa_offset 24",
    "pop rbx",
    ".cfi_def_cfa_offset 16",
    "pop rbp",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size modload_threads_enter, . - modload_threads_enter",
    ".hidden modload_threads_land",
    ".globl modload_threads_land",
    ".type modload_threads_land, @function",
    "modload_threads_land:",
    "mov rax, rdi",
    "mov rsp, rsi",
    "cld",
    "jmp modload_threads_caught",
    ".size modload_threads_land, . - modload_threads_land",
    ".popsection",
    personality = sym personality,
);

// Actions and results: Itanium C++ ABI, 1.2.
const SEARCH_PHASE: c_int = 1;
const HANDLER_FRAME: c_int = 4;
const FORCE_UNWIND: c_int = 8;
const NO_REASON: c_int = 0;
const HANDLER_FOUND: c_int = 6;
const INSTALL_CONTEXT: c_int = 7;
const CONTINUE_UNWIND: c_int = 8;
const FATAL_PHASE1_ERROR: c_int = 3;

/// The class of Rust's panics, whose letters stand in memory in this order; others' begin with the highest byte.
const RUST: u64 = u64::from_ne_bytes(*b"MOZ\0RUST");
/// The class of what [`leave`] throws.
const LEAVING: u64 = u64::from_be_bytes(*b"MODLOAD\0");
/// The class of what glibc unwinds a thread by.
const FORCED: u64 = 0;

/// The DWARF number of rax, in which a landing pad gets the exception (psABI, table 3.36; gcc's
/// `__builtin_eh_return_data_regno(0)`).
const RAX: c_int = 0;

/// What a panic of this program's own standard library has behind its header, by which it knows its own: the address of a variable
/// of its. 0: not known yet.
static OWN_PANIC: AtomicUsize = AtomicUsize::new(0);

/// Panics once, so that `personality` sees what one of our own looks like.
fn learn_own_panics() {
    if OWN_PANIC.load(Ordering::Relaxed) == 0 {
        let _ = pass(|| std::panic::resume_unwind(Box::new(())));
    }
}

/// Whether a panic is of this program's own standard library: only that can catch it. Before anything is known, it is: [`guard`] throws
/// the first one itself.
///
/// # Safety
/// A panic of Rust's.
unsafe fn is_own_panic(exception: *const Header) -> bool {
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
    exception: *mut Header,
    context: *mut c_void,
) -> c_int {
    if version != 1 {
        return FATAL_PHASE1_ERROR;
    }
    let is_forced = actions & FORCE_UNWIND != 0;
    // SAFETY: it says that it is a panic of Rust's.
    let passes = class == RUST && !is_forced && unsafe { is_own_panic(exception) };
    if actions & SEARCH_PHASE != 0 {
        // Nothing has been unwound yet.
        let place = INNERMOST.get();
        if !place.is_null() {
            // SAFETY: the innermost boundary is the one whose frame this is: an inner one would have caught it.
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
    // SAFETY: the unwinder's context, in the phase in which registers may be set.
    unsafe { _Unwind_SetGR(context, RAX, exception.expose_provenance()) };
    // SAFETY: the same. The address is in `enter`, where its frame is as after its call.
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
