//! Threads that are known by their creator.
//!
//! A thread's frames do not say what wanted the thread: between the C library's start of a thread and the code that the thread is for
//! may lie frames of a library (libstdc++'s, of a `std::thread`) or of a tracer. So a [`Creator`] has a number, and a thread that it
//! creates has the number in its [own memory](crate::word) from before its first function on, for as long as it lives:
//! [`Stack::creator`](crate::frames::Stack::creator).
//!
//! The new thread begins in a few instructions of ours, which store the number and jump to the first function: none of our frames
//! stays below it, so cancellation, `pthread_exit` and walks find what they would find without us. Until then no frame of the
//! thread shows that it will call its creator's code: it is counted ([`Creator::unborn`]), and is known by those few instructions
//! ([`is_beginning`]).

use std::arch::global_asm;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::system;
use crate::word;

/// A creator of threads.
#[derive(Debug)]
pub struct Creator {
    number: u64,
    /// The process in the upper half; in the lower, how many of its threads are yet to call the creator's code, but for those whose
    /// stacks show it.
    unborn: AtomicU64,
}

/// The next creator's number; 0 is none.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl Default for Creator {
    fn default() -> Creator {
        Creator::new()
    }
}

impl Creator {
    /// One with a number of its own.
    #[must_use]
    pub fn new() -> Creator {
        Creator { number: NUMBERS.fetch_add(1, Ordering::Relaxed), unborn: AtomicU64::new(0) }
    }

    /// Its number, in the whole process; never 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many threads will call the creator's code though their stacks may not show it: they have not begun yet, or are a
    /// `std::thread` whose function is still to be called, or destroyed.
    #[must_use]
    pub fn unborn(&self) -> u64 {
        let unborn = self.unborn.load(Ordering::Acquire);
        // In a forked child those of its parent's are not there.
        if unborn >> 32 == process() { unborn & u64::from(u32::MAX) } else { 0 }
    }

    fn count(&self, change: impl Fn(u64) -> u64) {
        let process = process();
        let _ = self.unborn.fetch_update(Ordering::AcqRel, Ordering::Acquire, |unborn| {
            let here = if unborn >> 32 == process { unborn & u64::from(u32::MAX) } else { 0 };
            Some(process << 32 | change(here))
        });
    }

    fn conceive(&self) {
        self.count(|unborn| unborn.saturating_add(1));
    }

    fn bear(&self) {
        self.count(|unborn| unborn.saturating_sub(1));
    }
}

fn process() -> u64 {
    u64::from(system::getpid().cast_unsigned())
}

/// Whether a thread with a frame that goes on here is only beginning: it will jump to its first function.
#[must_use]
pub fn is_beginning(pc: u64) -> bool {
    let [start, end] = [(&raw const BEGIN).addr(), (&raw const END).addr()];
    usize::try_from(pc).is_ok_and(|pc| (start..end).contains(&pc))
}

/// What a new thread begins with.
struct Beginning {
    creator: Arc<Creator>,
    first: *const c_void,
    argument: *mut c_void,
}

impl Beginning {
    /// For a thread that is about to be created.
    fn lend(creator: Arc<Creator>, first: *const c_void, argument: *mut c_void) -> *mut Beginning {
        creator.conceive();
        Box::into_raw(Box::new(Beginning { creator, first, argument }))
    }

    /// Returns `failed`; if that is not 0, no thread has been created, and what was lent is freed.
    ///
    /// # Safety
    /// It was lent, and no thread has it if `failed` is not 0.
    unsafe fn take_back(beginning: *mut Beginning, failed: c_int) -> c_int {
        if failed != 0 {
            // SAFETY: the caller's.
            let beginning = unsafe { Box::from_raw(beginning) };
            beginning.creator.bear();
        }
        failed
    }
}

/// A function and its argument, in the two registers in which such a pair is returned.
#[repr(C)]
struct First {
    function: *const c_void,
    argument: *mut c_void,
}

global_asm!(
    ".pushsection .text.modload_threads_begin, \"ax\", @progbits",
    ".balign 16",
    ".hidden modload_threads_begin",
    ".globl modload_threads_begin",
    ".type modload_threads_begin, @function",
    ".hidden modload_threads_begin_start",
    ".globl modload_threads_begin_start",
    "modload_threads_begin_start:",
    "modload_threads_begin:",
    ".cfi_startproc",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 16",
    "call {take}",
    "mov rdi, rdx",
    "add rsp, 8",
    ".cfi_def_cfa_offset 8",
    "jmp rax",
    ".cfi_endproc",
    ".size modload_threads_begin, . - modload_threads_begin",
    ".balign 16",
    ".hidden modload_threads_run_state",
    ".globl modload_threads_run_state",
    ".type modload_threads_run_state, @function",
    "modload_threads_run_state:",
    ".cfi_startproc",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 16",
    "call {begin_state}",
    "mov rdi, rax",
    "add rsp, 8",
    ".cfi_def_cfa_offset 8",
    "mov rax, [rdi]",
    // The third virtual function: _M_run.
    "jmp [rax + 16]",
    ".cfi_endproc",
    ".size modload_threads_run_state, . - modload_threads_run_state",
    ".hidden modload_threads_begin_end",
    ".globl modload_threads_begin_end",
    "modload_threads_begin_end:",
    "int3",
    ".popsection",
    take = sym take,
    begin_state = sym begin_state,
);

unsafe extern "C" {
    #[link_name = "modload_threads_begin"]
    fn begin(beginning: *mut c_void) -> *mut c_void;
    /// The first address of all this, and the one behind it.
    #[link_name = "modload_threads_begin_start"]
    static BEGIN: u8;
    #[link_name = "modload_threads_begin_end"]
    static END: u8;
    #[link_name = "modload_threads_run_state"]
    fn run_state(state: *mut c_void);
}

/// Runs in the new thread, once.
extern "C" fn take(beginning: *mut Beginning) -> First {
    // SAFETY: the creator has made it for this thread alone.
    let Beginning { creator, first, argument } = *unsafe { Box::from_raw(beginning) };
    word::own_words().creator.store(creator.number, Ordering::Relaxed);
    // Its stack shows that it is beginning.
    creator.bear();
    First { function: first, argument }
}

/// `pthread_create(3)`, of a thread that knows its creator.
///
/// # Safety
/// As for `pthread_create`; `first` is a `void *(*)(void *)`.
pub unsafe fn create(
    creator: Arc<Creator>,
    thread: *mut c_void,
    attributes: *const c_void,
    first: *const c_void,
    argument: *mut c_void,
) -> c_int {
    let beginning = Beginning::lend(creator, first, argument);
    // SAFETY: the caller's; `begin` goes on in `first`.
    let failed = unsafe { libc::pthread_create(thread.cast(), attributes.cast(), start(), beginning.cast()) };
    // SAFETY: no thread has it if none was created.
    unsafe { Beginning::take_back(beginning, failed) }
}

type C11Create = unsafe extern "C" fn(*mut libc::pthread_t, *const c_void, *mut c_void) -> c_int;

/// `thrd_create` of C11, of a thread that knows its creator. `create` is the C library's.
///
/// # Safety
/// As for `thrd_create`, which `create` points to; `first` is an `int (*)(void *)`.
pub unsafe fn create_c11(
    creator: Arc<Creator>,
    create: *const c_void,
    thread: *mut c_void,
    first: *const c_void,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the caller says so.
    let create = unsafe { std::mem::transmute::<*const c_void, C11Create>(create) };
    #[expect(
        clippy::as_conversions,
        reason = "a function pointer of another type, whose result is in the same register"
    )]
    let begin = start() as *const c_void;
    let beginning = Beginning::lend(creator, first, argument);
    // SAFETY: the caller's; `begin` goes on in `first`.
    let failed = unsafe { create(thread.cast(), begin, beginning.cast()) };
    // SAFETY: no thread has it if none was created.
    unsafe { Beginning::take_back(beginning, failed) }
}

fn start() -> extern "C" fn(*mut c_void) -> *mut c_void {
    type Safe = extern "C" fn(*mut c_void) -> *mut c_void;
    type Unsafe = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
    let begin: Unsafe = begin;
    // SAFETY: it is passed to what creates threads alone, with the argument that it wants.
    unsafe { std::mem::transmute::<Unsafe, Safe>(begin) }
}

/// A `std::thread::_State` of libstdc++ that stands for another one. The class has a virtual destructor and one more virtual function,
/// `_M_run()`.
#[repr(C)]
struct State {
    functions: *const Functions,
    creator: Arc<Creator>,
    original: *mut Original,
}

/// The virtual functions of a `std::thread::_State` (Itanium C++ ABI, 2.5).
#[repr(C)]
struct Functions {
    /// Destroys the object and leaves its memory.
    destroy: unsafe extern "C-unwind" fn(*mut c_void),
    /// Destroys the object and frees its memory.
    delete: unsafe extern "C-unwind" fn(*mut c_void),
    run: *const c_void,
}

#[repr(C)]
struct Original {
    functions: *const Functions,
}

/// What the pointer to virtual functions points into.
#[repr(C)]
struct Table {
    offset_to_top: isize,
    type_info: *const c_void,
    functions: Functions,
}

// SAFETY: it is never written.
unsafe impl Sync for Table {}

static TABLE: Table = Table {
    offset_to_top: 0,
    type_info: ptr::null(),
    #[expect(clippy::as_conversions, reason = "a function's address, for a table of C++")]
    functions: Functions { destroy: destroy_state, delete: delete_state, run: run_state as *const c_void },
};

/// Runs in the new thread; returns the state that this one stands for.
extern "C" fn begin_state(state: *mut State) -> *mut Original {
    // SAFETY: libstdc++ calls `_M_run` of a state that lives.
    let state = unsafe { &*state };
    word::own_words().creator.store(state.creator.number, Ordering::Relaxed);
    state.original
}

unsafe extern "C-unwind" fn destroy_state(state: *mut c_void) {
    // SAFETY: the object lives until this returns.
    let original = unsafe { (*state.cast::<State>()).original };
    // SAFETY: a state of libstdc++'s, which this one owns.
    let functions = unsafe { (*original).functions };
    // SAFETY: its virtual functions are where the ABI says.
    let delete = unsafe { (*functions).delete };
    // SAFETY: it is owned, and deleted once.
    unsafe { delete(original.cast()) };
}

unsafe extern "C-unwind" fn delete_state(state: *mut c_void) {
    // SAFETY: as for this function.
    unsafe { destroy_state(state) };
    // SAFETY: made by `start_std_thread`, and deleted once.
    let state = unsafe { Box::from_raw(state.cast::<State>()) };
    // The original one is destroyed.
    state.creator.bear();
}

type StartStdThread = unsafe extern "C-unwind" fn(*mut c_void, *mut *mut c_void, *const c_void);

/// libstdc++'s `std::thread::_M_start_thread(std::unique_ptr<_State>, void (*)())`, of a thread that knows its creator. `start` is
/// libstdc++'s. What it throws passes.
///
/// # Safety
/// As for `start`: `thread` is the `std::thread`, and `state` points to the `unique_ptr`.
pub unsafe fn start_std_thread(
    creator: Arc<Creator>,
    start: *const c_void,
    thread: *mut c_void,
    state: *mut *mut c_void,
    depend: *const c_void,
) {
    // SAFETY: the caller's.
    let original = unsafe { state.read() };
    creator.conceive();
    let ours = State { functions: &raw const TABLE.functions, creator, original: original.cast() };
    // SAFETY: the pointer's owner deletes what it points to, by its virtual functions: ours delete the original one, too.
    unsafe { state.write(Box::into_raw(Box::new(ours)).cast()) };
    // SAFETY: the caller says so.
    let start = unsafe { std::mem::transmute::<*const c_void, StartStdThread>(start) };
    // SAFETY: the caller's.
    unsafe { start(thread, state, depend) };
}
