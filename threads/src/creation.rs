//! Threads that carry the number of their creator.
//!
//! A thread's frames do not show which code wanted the thread: between the C library's start of a thread and the
//! thread's own code there may be frames of a library (libstdc++'s, of a `std::thread`) or of a tracer. So a
//! [`Creator`] has a number. A thread that the creator creates has that number in its [own memory](crate::word) from
//! before its first function on, until the thread ends: [`Stack::creator`](crate::frames::Stack::creator).
//!
//! The new thread begins in a few instructions of this module, which store the number and jump to the first function.
//! No frame of this module stays beneath the first function, so cancellation, `pthread_exit` and walks find the frames
//! that they would find without this module. Until the jump, no frame of the thread shows that the thread will call its
//! creator's code. The thread is counted until then ([`Creator::unborn`]), and is recognised by those few instructions
//! ([`is_beginning`]).

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::system;
use crate::thread_exit;
use crate::word;
use crate::x86_64::thread_beginnings;

/// A creator of threads.
#[derive(Debug)]
pub struct Creator {
    number: u64,
    /// The process id in the upper half. In the lower half, the number of the process's threads that will call the
    /// creator's code and whose stacks do not show that yet.
    unborn: AtomicU64,
}

/// The next creator's number; 0 stands for no creator.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl Default for Creator {
    fn default() -> Creator {
        Creator::new()
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        thread_exit::forget(self.number);
    }
}

impl Creator {
    /// Returns a creator with a number of its own.
    #[must_use]
    pub fn new() -> Creator {
        Creator { number: NUMBERS.fetch_add(1, Ordering::Relaxed), unborn: AtomicU64::new(0) }
    }

    /// Returns the creator's number, unique in the whole process; never 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the number of threads that will call the creator's code though their stacks may not show that: threads
    /// that have not begun yet, and each `std::thread` whose state (the object with its function) is not destroyed yet.
    #[must_use]
    pub fn unborn(&self) -> u64 {
        let unborn = self.unborn.load(Ordering::Acquire);
        // In a forked child, the threads that the parent counted do not exist.
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

/// Returns whether `pc` lies in the instructions with which a thread begins: a thread with such a frame will jump to
/// its first function.
#[must_use]
pub fn is_beginning(pc: u64) -> bool {
    let [start, end] = [(&raw const BEGIN).addr(), (&raw const END).addr()];
    usize::try_from(pc).is_ok_and(|pc| (start..end).contains(&pc))
}

/// The argument of a new thread's beginning.
struct Beginning {
    creator: Arc<Creator>,
    first: *const c_void,
    argument: *mut c_void,
}

impl Beginning {
    /// Makes the argument for a thread that is about to be created, and counts the thread.
    fn lend(creator: Arc<Creator>, first: *const c_void, argument: *mut c_void) -> *mut Beginning {
        creator.conceive();
        Box::into_raw(Box::new(Beginning { creator, first, argument }))
    }

    /// Returns `failed`. If `failed` is not 0, no thread has been created, and the function frees `beginning`.
    ///
    /// # Safety
    /// `lend` returned `beginning`, and no thread has it if `failed` is not 0.
    unsafe fn take_back(beginning: *mut Beginning, failed: c_int) -> c_int {
        if failed != 0 {
            // SAFETY: the caller guarantees that `lend` made the box and that no thread has it.
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

thread_beginnings!(take, begin_state);

unsafe extern "C" {
    #[link_name = "modload_threads_begin"]
    fn begin(beginning: *mut c_void) -> *mut c_void;
    /// The first address of these instructions, and the address behind them.
    #[link_name = "modload_threads_begin_start"]
    static BEGIN: u8;
    #[link_name = "modload_threads_begin_end"]
    static END: u8;
    #[link_name = "modload_threads_run_state"]
    fn run_state(state: *mut c_void);
}

/// Runs in the new thread, once.
extern "C" fn take(beginning: *mut Beginning) -> First {
    // SAFETY: the creator has made the box for this thread alone.
    let Beginning { creator, first, argument } = *unsafe { Box::from_raw(beginning) };
    word::own_words().creator.store(creator.number, Ordering::Relaxed);
    // The stack shows that this thread is beginning.
    creator.bear();
    First { function: first, argument }
}

/// Calls `pthread_create(3)`, for a thread that carries the number of its creator.
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
    // SAFETY: the caller keeps the contract of `pthread_create`; `begin` jumps to `first`.
    let failed = unsafe { libc::pthread_create(thread.cast(), attributes.cast(), start(), beginning.cast()) };
    // SAFETY: no thread has `beginning` if none was created.
    unsafe { Beginning::take_back(beginning, failed) }
}

type C11Create = unsafe extern "C" fn(*mut libc::pthread_t, *const c_void, *mut c_void) -> c_int;

/// Calls C11's `thrd_create`, for a thread that carries the number of its creator. `create` is the C library's
/// function.
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
    // SAFETY: the caller guarantees that `create` points to `thrd_create`.
    let create = unsafe { std::mem::transmute::<*const c_void, C11Create>(create) };
    #[expect(
        clippy::as_conversions,
        reason = "a function pointer of another type, whose result is in the same register"
    )]
    let begin = start() as *const c_void;
    let beginning = Beginning::lend(creator, first, argument);
    // SAFETY: the caller keeps the contract of `thrd_create`; `begin` jumps to `first`.
    let failed = unsafe { create(thread.cast(), begin, beginning.cast()) };
    // SAFETY: no thread has `beginning` if none was created.
    unsafe { Beginning::take_back(beginning, failed) }
}

fn start() -> extern "C" fn(*mut c_void) -> *mut c_void {
    type Safe = extern "C" fn(*mut c_void) -> *mut c_void;
    type Unsafe = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
    let begin: Unsafe = begin;
    // SAFETY: only functions that create threads get this pointer, together with the argument that `begin` requires.
    unsafe { std::mem::transmute::<Unsafe, Safe>(begin) }
}

/// A `std::thread::_State` of libstdc++ that replaces and owns another one. The class has a virtual destructor and one
/// more virtual function, `_M_run()`.
#[repr(C)]
struct WrappedState {
    functions: *const Functions,
    creator: Arc<Creator>,
    original: *mut Original,
}

/// The virtual functions of a `std::thread::_State` (Itanium C++ ABI, 2.5).
#[repr(C)]
struct Functions {
    /// Destroys the object and does not free its memory.
    destroy: unsafe extern "C-unwind" fn(*mut c_void),
    /// Destroys the object and frees its memory.
    delete: unsafe extern "C-unwind" fn(*mut c_void),
    run: *const c_void,
}

#[repr(C)]
struct Original {
    functions: *const Functions,
}

/// The virtual table. An object's pointer to its virtual functions points to the field `functions`.
#[repr(C)]
struct StateVtable {
    offset_to_top: isize,
    type_info: *const c_void,
    functions: Functions,
}

// SAFETY: the table is never written.
unsafe impl Sync for StateVtable {}

static TABLE: StateVtable = StateVtable {
    offset_to_top: 0,
    type_info: ptr::null(),
    #[expect(clippy::as_conversions, reason = "a function's address, for a table of C++")]
    functions: Functions { destroy: destroy_state, delete: delete_state, run: run_state as *const c_void },
};

/// Runs in the new thread; returns the state that this one replaces.
extern "C" fn begin_state(state: *mut WrappedState) -> *mut Original {
    // SAFETY: libstdc++ calls `_M_run` of a state that lives.
    let state = unsafe { &*state };
    word::own_words().creator.store(state.creator.number, Ordering::Relaxed);
    state.original
}

unsafe extern "C-unwind" fn destroy_state(state: *mut c_void) {
    // SAFETY: the object lives until this function returns.
    let original = unsafe { (*state.cast::<WrappedState>()).original };
    // SAFETY: `original` is a state of libstdc++, which this state owns.
    let functions = unsafe { (*original).functions };
    // SAFETY: the virtual functions of `original` are at the place that the ABI fixes.
    let delete = unsafe { (*functions).delete };
    // SAFETY: this state owns `original`, and deletes it once.
    unsafe { delete(original.cast()) };
}

unsafe extern "C-unwind" fn delete_state(state: *mut c_void) {
    // SAFETY: as for this function.
    unsafe { destroy_state(state) };
    // SAFETY: `start_std_thread` made the box, and it is deleted once.
    let state = unsafe { Box::from_raw(state.cast::<WrappedState>()) };
    // The original state is destroyed.
    state.creator.bear();
}

type StartStdThread = unsafe extern "C-unwind" fn(*mut c_void, *mut *mut c_void, *const c_void);

/// Calls libstdc++'s `std::thread::_M_start_thread(std::unique_ptr<_State>, void (*)())`, for a thread that carries the
/// number of its creator. `start` is libstdc++'s function. An exception of `start` passes through.
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
    // SAFETY: the caller guarantees that `state` points to the `unique_ptr`.
    let original = unsafe { state.read() };
    creator.conceive();
    let ours = WrappedState { functions: &raw const TABLE.functions, creator, original: original.cast() };
    // SAFETY: the owner of the `unique_ptr` deletes the new state by its virtual functions, which delete the original
    // state, too.
    unsafe { state.write(Box::into_raw(Box::new(ours)).cast()) };
    // SAFETY: the caller guarantees that `start` is `_M_start_thread`.
    let start = unsafe { std::mem::transmute::<*const c_void, StartStdThread>(start) };
    // SAFETY: the caller keeps the contract of `start`.
    unsafe { start(thread, state, depend) };
}
