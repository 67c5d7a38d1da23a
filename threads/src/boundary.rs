//! The boundary between us and code that may throw: whatever is thrown beyond it ends here, and has a name.
//!
//! Rust's `catch_unwind` catches panics only; at an exception of another language it ends the process. So between it and
//! a module stands a function of a few instructions with a personality routine of its own (Itanium C++ ABI, exception
//! handling, 1.3 to 1.6): of a foreign exception it says that it is handled here, and then has it deleted as its
//! runtime wants; a panic passes through, to be caught by `catch_unwind`. What the process itself forces (a thread that
//! is cancelled, or exits) passes, too.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a function has thrown. It has been caught and deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Thrown {
    /// A panic of this process's Rust code, with its message if it has one.
    Panic(String),
    /// An exception of another language: vendor and language as eight letters, `GNUCC++` for g++, `CLNGC++` for clang.
    Foreign(String),
}

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Thrown::Panic(message) => write!(f, "a panic: {message}"),
            Thrown::Foreign(class) => write!(f, "an exception of the class {class}"),
        }
    }
}

/// Runs something that may call code that throws; a frame that catches is put beneath it.
///
/// # Errors
/// [`Thrown`], if something was thrown beyond it.
pub fn guard<R, F: FnOnce() -> R>(run: F) -> Result<R, Thrown> {
    let mut job = Job { run: Some(run), result: None };
    // SAFETY: `perform` takes a job of this type, which is ours while the call lasts, and unwinds by panics and foreign
    // exceptions only.
    let caught = catch_unwind(AssertUnwindSafe(|| unsafe { enter(perform::<R, F>, (&raw mut job).cast()) }));
    let exception = caught.map_err(|panic| Thrown::Panic(message(&*panic)))?;
    if exception.is_null() {
        // It has returned, and so it has left its result.
        return job.result.ok_or_else(|| Thrown::Foreign(String::new()));
    }
    // SAFETY: the exception that `personality` has had caught begins with its class, as all do.
    let class = unsafe { exception.cast::<u64>().read() };
    // SAFETY: nobody else uses it any more.
    unsafe { _Unwind_DeleteException(exception) };
    Err(Thrown::Foreign(class_name(class)))
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

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_DeleteException(exception: *mut c_void);
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn _Unwind_SetIP(context: *mut c_void, at: usize);
}

unsafe extern "C-unwind" {
    /// Calls `function(argument)`. Returns null, or the foreign exception that it has thrown.
    #[link_name = "modload_threads_enter"]
    fn enter(function: unsafe extern "C-unwind" fn(*mut c_void), argument: *mut c_void) -> *mut c_void;
}

unsafe extern "C" {
    /// Where `enter` goes on with an exception; not a function.
    #[link_name = "modload_threads_caught"]
    static CAUGHT: u8;
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
    "sub rsp, 8",
    ".cfi_def_cfa_offset 16",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "xor eax, eax",
    ".hidden modload_threads_caught",
    ".globl modload_threads_caught",
    "modload_threads_caught:",
    // The exception is in rax, where `personality` has put it, or null.
    "add rsp, 8",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size modload_threads_enter, . - modload_threads_enter",
    ".popsection",
    personality = sym personality,
);

// Actions and results: Itanium C++ ABI, 1.2.
const SEARCH_PHASE: c_int = 1;
const HANDLER_FRAME: c_int = 4;
const FORCE_UNWIND: c_int = 8;
const HANDLER_FOUND: c_int = 6;
const INSTALL_CONTEXT: c_int = 7;
const CONTINUE_UNWIND: c_int = 8;
const FATAL_PHASE1_ERROR: c_int = 3;

/// The class of Rust's panics, whose letters stand in memory in this order; everybody else's begin with the highest byte.
const RUST: u64 = u64::from_ne_bytes(*b"MOZ\0RUST");

/// The DWARF number of rax, in which a landing pad gets the exception (psABI, table 3.36; gcc's
/// `__builtin_eh_return_data_regno(0)`).
const RAX: c_int = 0;

unsafe extern "C" fn personality(
    version: c_int,
    actions: c_int,
    class: u64,
    exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    if version != 1 {
        return FATAL_PHASE1_ERROR;
    }
    if class == RUST || actions & FORCE_UNWIND != 0 {
        return CONTINUE_UNWIND;
    }
    if actions & SEARCH_PHASE != 0 {
        return HANDLER_FOUND;
    }
    if actions & HANDLER_FRAME == 0 {
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
        assert_eq!(panics("here"), Err(Thrown::Panic("here".into())));
        assert_eq!(panics(""), Ok(()));
        let of_no_text: Result<(), _> = guard(|| std::panic::resume_unwind(Box::new(7)));
        assert_eq!(of_no_text.unwrap_err().to_string(), "a panic: of no text");
    }

    #[test]
    fn classes_are_named_by_their_letters() {
        assert_eq!(class_name(u64::from_be_bytes(*b"GNUCC++\0")), "GNUCC++");
        assert_eq!(class_name(u64::from_be_bytes(*b"GNUCC++\x01")), "GNUCC++\\x01");
        assert_eq!(class_name(0), "");
    }
}
