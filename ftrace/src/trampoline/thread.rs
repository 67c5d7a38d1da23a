//! The state of each thread: whether the thread is within the tracing already, its ring, and its return stack.
//!
//! The state is found through twenty-four bytes of thread-local memory, which are zero in each new thread. A thread
//! joins a recording at its first call of a traced function in it ([`attach`]). That call may be in a signal handler or
//! inside of malloc, so joining allocates nothing and takes no lock.

use std::arch::global_asm;
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::{offset_of, size_of};
use std::ops::ControlFlow;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use modload_edit::{index, wide};
use modload_text::Pages;
use modload_threads::frames::Ended;
use modload_threads::{DEFAULT_LIMIT, Error, Interrupted, Probe, Tid, is_alone, run_in_each};

use super::ring::{Reader, UNIT, UNWOUND, Unit};
use super::sets::{Set, address};
use super::{Function, Width};

/// The number of the recording under way, or [`OFF`].
pub(crate) static CURRENT: AtomicU32 = AtomicU32::new(OFF);

/// The number that means: no recording.
pub(crate) const OFF: u32 = u32::MAX;

/// The number that means: the thread is ending, and joins no recording any more.
const ENDING: u32 = u32::MAX - 1;

/// The size in bytes of the rings of threads that join from now on. A power of two.
pub(crate) static RING: AtomicU64 = AtomicU64::new(1 << 20);

/// The number of calls from within the tracing itself, in the whole process.
pub(crate) static NESTED: AtomicU64 = AtomicU64::new(0);

/// The number of calls of threads that cannot join: they are on another stack than their own, are ending, or there is
/// no memory.
pub(crate) static STRANGERS: AtomicU64 = AtomicU64::new(0);

/// The address of the code that calls [`ask`] and preserves the registers that a function may need.
pub(super) static ASK: AtomicU64 = AtomicU64::new(0);

/// The most functions on a return stack.
const DEPTH: usize = 1024;

/// The thread-local memory.
#[repr(C)]
struct Local {
    thread: Cell<*mut Thread>,
    /// 1 while the thread is in tracers or about to be, 2 while it records, otherwise 0.
    busy: Cell<u32>,
    /// The number of the recording that the thread has joined last, or 0.
    session: Cell<u32>,
    /// The tracers that the thread is in. Null if it is in none, and for a moment when it enters them.
    running: Cell<*const Set>,
}

pub(super) const RUNNING: usize = offset_of!(Local, running);
pub(super) const BUSY: usize = offset_of!(Local, busy);
pub(super) const SESSION: usize = offset_of!(Local, session);

/// The state of a thread. Only the thread itself writes it, except for `tail`, and except in the child of a fork.
#[repr(C)]
pub(super) struct Thread {
    /// The newest of the places of functions that the thread is in.
    pub(super) top: Cell<*mut Place>,
    /// The free places.
    pub(super) free: Cell<*mut Place>,
    /// The first place that was never used, and the end of such places.
    fresh: Cell<*mut Place>,
    limit: Cell<*mut Place>,
    /// The places of functions that were assumed to be left but may still be alive.
    pub(super) lost: Cell<*mut Place>,
    /// The address that recorded functions return to.
    pub(super) returns: Cell<u64>,
    /// The last detection of this thread on a coroutine's stack.
    inner: Cell<Inner>,
    /// The end of a stack for walks, because the thread's current stack may be small.
    aside: Cell<*mut u8>,
    /// The thread's own stack: the lowest address, and the size in bytes.
    pub(super) stack: Cell<u64>,
    pub(super) stack_len: Cell<u64>,
    pub(super) ring: AtomicPtr<Unit>,
    /// The number of units in the ring less 1.
    pub(super) mask: AtomicU64,
    /// The number of units that were written.
    pub(super) head: AtomicU64,
    /// The number of recorded functions that the thread is in.
    pub(super) open: Cell<u64>,
    /// The largest number of used units at which two more are free.
    pub(super) room: Cell<u64>,
    pub(super) dropped: AtomicU64,
    pub(super) deep: AtomicU64,
    pub(super) elsewhere: AtomicU64,
    /// The recording that the thread has joined.
    pub(super) session: AtomicU32,
    pub(super) tid: AtomicI32,
    pub(super) ended: AtomicBool,
    /// The thread's name, from prctl(2).
    pub(super) name: Cell<[u8; 16]>,
    /// The next of the threads that no reader has taken yet.
    next: Cell<*mut Thread>,
    /// The memory of this state, and the memory of the ring.
    home: Cell<Option<Pages>>,
    ring_home: Cell<Option<Pages>>,
    /// The number of units that were read, apart from the rest, because another processor writes this number.
    pub(super) tail: Apart,
}

/// A counter in a cache line of its own.
#[repr(C, align(128))]
pub(super) struct Apart(AtomicU64);

impl std::ops::Deref for Apart {
    type Target = AtomicU64;
    fn deref(&self) -> &AtomicU64 {
        &self.0
    }
}

/// A place on the return stack, for a function that a thread is in.
#[repr(C)]
pub(super) struct Place {
    /// The function's return address.
    pub(super) parent: u64,
    /// The caller's value of rbx.
    pub(super) saved: u64,
    /// `parent` and `saved` of the oldest of the functions that share a frame by tail calls.
    pub(super) outer: u64,
    pub(super) outer_saved: u64,
    /// The address at which the function continued behind its site.
    pub(super) target: u64,
    /// The address at which the function's return address is stored.
    pub(super) slot: u64,
    pub(super) function: *const Function,
    /// The next place in the same list. For the places of functions, this is the function that was entered before.
    pub(super) next: *mut Place,
    /// The recording of the entry, or 0 if the function's end is recorded already.
    pub(super) session: u32,
    /// The state of the place.
    is: Is,
}

impl Place {
    fn unused(slot: u64) -> Place {
        let (function, next) = (ptr::null(), ptr::null_mut());
        Place {
            parent: 0,
            saved: 0,
            outer: 0,
            outer_saved: 0,
            target: 0,
            slot,
            function,
            next,
            session: 0,
            is: Is::Open,
        }
    }
}

/// The state of a place.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Is {
    /// A function is in the place, or `longjmp` has left the function. Free places have this state, too.
    Open = 0,
    /// An unwinder has left the function.
    Unwound,
    /// The function was assumed to be left. If it returns, its end is not recorded.
    Lost,
}

/// A detection of the thread on a coroutine's stack: the thread was between these two addresses, when this place was
/// the newest.
#[derive(Clone, Copy, Default)]
struct Inner {
    low: u64,
    high: u64,
    top: usize,
    /// The `slot` and the `parent` of the newest place, which identify the function, because places are used again.
    slot: u64,
    parent: u64,
}

global_asm!(
    r#"
    .pushsection .tbss.modload_ftrace_thread, "awT", @nobits
    .balign 8
    .hidden modload_ftrace_thread
    .globl modload_ftrace_thread
    .type modload_ftrace_thread, @object
    .size modload_ftrace_thread, 24
modload_ftrace_thread:
    .zero 24
    .popsection

    .pushsection .text.modload_ftrace_local, "ax", @progbits
    .balign 16
    .hidden modload_ftrace_local
    .globl modload_ftrace_local
    .type modload_ftrace_local, @function
modload_ftrace_local:
    .cfi_startproc
    mov rax, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    add rax, qword ptr fs:[0]
    ret
    .cfi_endproc
    .size modload_ftrace_local, . - modload_ftrace_local

// rax is passed on, and the answer comes in rax; but for rcx and rdx, which the caller has saved, all else is preserved.
.macro modload_ftrace_ask name:req, bytes:req, move:req, register:req
    .balign 16
    .hidden modload_ftrace_ask_\name
    .globl modload_ftrace_ask_\name
    .type modload_ftrace_ask_\name, @function
modload_ftrace_ask_\name:
    .cfi_startproc
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    push rdi
    push rsi
    push r8
    push r9
    push r10
    push r11
    and rsp, -64
    sub rsp, 8 * \bytes
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    \move [rsp + \number * \bytes], \register\number
    .endr
    mov rdi, rax
    call {ask}
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    \move \register\number, [rsp + \number * \bytes]
    .endr
    lea rsp, [rbp - 48]
    pop r11
    pop r10
    pop r9
    pop r8
    pop rsi
    pop rdi
    pop rbp
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
    ret
    .cfi_endproc
    .size modload_ftrace_ask_\name, . - modload_ftrace_ask_\name
.endm
    modload_ftrace_ask xmm, 16, movups, xmm
    modload_ftrace_ask ymm, 32, vmovups, ymm
    modload_ftrace_ask zmm, 64, vmovups, zmm
    .popsection
"#,
    ask = sym ask,
);

unsafe extern "C" {
    #[link_name = "modload_ftrace_local"]
    safe fn local_address() -> *const c_void;
    static modload_ftrace_ask_xmm: u8;
    static modload_ftrace_ask_ymm: u8;
    static modload_ftrace_ask_zmm: u8;
}

/// Returns this thread's thread-local memory.
fn local() -> &'static Local {
    // SAFETY: these twenty-four bytes belong to this thread and are initially zero, which is a valid `Local`. The
    // reference does not leave this module, so no code can hold it beyond the thread's end.
    unsafe { &*local_address().cast::<Local>() }
}

/// Returns whether this thread is in a tracer, or in code that records.
pub(crate) fn is_nested() -> bool {
    local().busy.get() != 0
}

/// A thread's activity with tracers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Doing {
    /// The thread is in no tracers, and reads the tracers of its next call at that time.
    Nothing,
    /// The thread is in the tracers of this set.
    Running(*const Set),
    /// The thread is about to enter tracers, or has just left them. A later check shows which.
    Something,
}

// SAFETY: the pointer is not dereferenced.
unsafe impl Send for Doing {}

fn doing() -> Doing {
    let local = local();
    match (local.busy.get(), local.running.get()) {
        (1, set) if set.is_null() => Doing::Something,
        (1, set) => Doing::Running(set),
        _ => Doing::Nothing,
    }
}

/// Returns the activities of all threads of the process, this thread first.
///
/// # Errors
/// Threads could not be asked.
pub(crate) fn doings() -> Result<Vec<Doing>, Error> {
    struct Ask;
    // SAFETY: the probe only reads thread-local memory, which exists from the thread's first instruction on.
    unsafe impl Probe for Ask {
        type Answer = Doing;
        fn probe(&self, _: Interrupted<'_>) -> Doing {
            doing()
        }
    }
    let mut all = vec![doing()];
    if !is_alone().unwrap_or(false) {
        all.extend(run_in_each(&Ask, DEFAULT_LIMIT)?.into_iter().map(|(_, doing)| doing));
    }
    Ok(all)
}

/// Prepares tracing, once: stores the width of the widest vector registers, and registers for the ends of threads.
pub(crate) fn prepare(widest: Width) {
    let code = match widest {
        Width::Xmm => &raw const modload_ftrace_ask_xmm,
        Width::Ymm => &raw const modload_ftrace_ask_ymm,
        Width::Zmm => &raw const modload_ftrace_ask_zmm,
    };
    ASK.store(address(code).get(), Ordering::SeqCst);
    let mut key = 0;
    // SAFETY: `key` is a local variable, and `end` is a function of the required type.
    let failed = unsafe { libc::pthread_key_create(&raw mut key, Some(end)) };
    if failed == 0 {
        KEY.store(wide(index(key.into())), Ordering::SeqCst);
    }
}

/// The key through which the C library reports the end of a thread, or `u64::MAX` if there is none.
static KEY: AtomicU64 = AtomicU64::new(u64::MAX);

/// The threads that have joined and that no reader has taken yet.
static NEW: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

const PASS: u64 = 0;
const RETRY: u64 = 1;
/// The answer for a function that returns: its end is recorded, and its place is given back.
const DONE: u64 = 1;

/// The bit that marks a function that has returned. No address has this bit.
pub(super) const RETURNED: u32 = 63;

/// Handles a function that cannot be recorded in the present state: the thread has not joined this recording yet, has
/// left functions by `longjmp`, is on a coroutine's stack, or has no free places. `slot` is the address at which the
/// function's return address is stored, or 0 if only calls are recorded. With [`RETURNED`], `slot` is the place of a
/// function that returns and is not the newest. Async-signal-safe, and no cancellation point.
extern "C" fn ask(slot: u64) -> u64 {
    if slot == super::event::EVENT {
        super::event::happened();
        return PASS;
    }
    let local = local();
    if slot >> RETURNED != 0 {
        let place = ptr::with_exposed_provenance_mut(index(slot & !(1 << RETURNED)));
        // SAFETY: a thread that has places has a state, which is its own.
        return unsafe { local.thread.get().as_ref() }.map_or(DONE, |thread| thread.returned(place));
    }
    let current = CURRENT.load(Ordering::Acquire);
    if current == OFF {
        return PASS;
    }
    if local.session.get() != current {
        let attached = if local.session.get() == ENDING { None } else { attach(local, current) };
        if attached.is_none() {
            STRANGERS.fetch_add(1, Ordering::Relaxed);
        }
        return attached.map_or(PASS, |()| RETRY);
    }
    // SAFETY: a thread that has joined has a state, which is its own.
    let Some(thread) = (unsafe { local.thread.get().as_ref() }) else { return PASS };
    if is_on_signal_stack() {
        thread.elsewhere.fetch_add(1, Ordering::Relaxed);
        return PASS;
    }
    thread.make_way(slot)
}

/// Returns whether this thread is on its alternate signal stack. That stack may lie in the middle of the thread's own
/// stack, where the places of functions beneath the signal look stale. Async-signal-safe.
fn is_on_signal_stack() -> bool {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the call only reads the setting, and the kernel writes to a local variable.
    let asked = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
    asked == 0 && stack.ss_flags & libc::SS_ONSTACK != 0
}

impl Thread {
    /// Makes way for a function that is entered: gives back the places of functions that were left and are not above
    /// the function. Returns whether the function can be recorded.
    fn make_way(&self, slot: u64) -> u64 {
        let is_tail_call = self.is_intact(slot);
        let is_in_the_way = |place: &Place| place.slot < slot || (place.slot == slot && !is_tail_call);
        // A function with an intact return address may be alive, unless an unwinder has left it.
        let is_uncertain = |place: &Place| place.is == Is::Open && self.is_intact(place.slot);
        if self.places().take_while(|place| is_in_the_way(place)).any(is_uncertain) && self.is_on_inner_stack(slot) {
            self.elsewhere.fetch_add(1, Ordering::Relaxed);
            return PASS;
        }
        while self.places().next().is_some_and(is_in_the_way) {
            self.leave_newest();
        }
        if self.free.get().is_null() {
            self.sweep();
        }
        if self.free.get().is_null() {
            self.take_fresh();
        }
        if self.free.get().is_null() {
            self.deep.fetch_add(1, Ordering::Relaxed);
            return PASS;
        }
        RETRY
    }

    /// Handles the return of a function whose place is not the newest. Returns whether the return is complete.
    fn returned(&self, place: *mut Place) -> u64 {
        // SAFETY: this place is from the call of a function of this thread, and only this code gives it back.
        if unsafe { (*place).is } == Is::Lost {
            self.take_from_lost(place);
            self.give_back(place);
            return DONE;
        }
        while !ptr::eq(self.top.get(), place) && self.places().next().is_some_and(|newest| newest.slot != u64::MAX) {
            self.leave_newest();
        }
        PASS
    }

    /// Gives back the newest place, whose function has been left. If the function may be alive, the place is kept for
    /// the function's return. Only the return address tells whether it may be.
    fn leave_newest(&self) {
        let place = self.top.get();
        left(place, UNWOUND);
        // SAFETY: the place is the thread's own, and initialized.
        let newest = unsafe { &mut *place };
        self.top.set(newest.next);
        if newest.is == Is::Unwound || !self.is_intact(newest.slot) {
            return self.give_back(place);
        }
        // If two places have the same slot, the older function has been left, unless the newer function is its
        // tail call.
        let (slot, callee) = (newest.slot, newest.parent == self.returns.get());
        if !callee {
            self.drop_lost(|lost| lost.slot == slot);
        }
        newest.is = Is::Lost;
        newest.next = self.lost.get();
        self.lost.set(place);
    }

    fn give_back(&self, place: *mut Place) {
        // SAFETY: the place is the thread's own, and in no list.
        let free = unsafe { &mut *place };
        free.is = Is::Open;
        free.next = self.free.get();
        self.free.set(place);
    }

    /// Gives back the lost places whose return address was overwritten: their functions are not alive any more.
    fn sweep(&self) {
        self.drop_lost(|lost| !self.is_intact(lost.slot));
    }

    /// Takes some of the places that were never used. The memory of these places was not touched before.
    fn take_fresh(&self) {
        const SOME: usize = 32;
        for _ in 0..SOME {
            let place = self.fresh.get();
            if ptr::eq(place, self.limit.get()) {
                return;
            }
            self.fresh.set(place.wrapping_add(1));
            // SAFETY: the place is within the thread's own pages, aligned, and in no list.
            unsafe { place.write(Place::unused(0)) };
            self.give_back(place);
        }
    }

    fn take_from_lost(&self, place: *mut Place) {
        let mut rest = self.lost.replace(ptr::null_mut());
        // SAFETY: the list holds places of this thread.
        while let Some(lost) = unsafe { rest.as_mut() } {
            let this = std::mem::replace(&mut rest, lost.next);
            if !ptr::eq(this, place) {
                lost.next = self.lost.replace(this);
            }
        }
    }

    fn drop_lost(&self, is_gone: impl Fn(&Place) -> bool) {
        let mut rest = self.lost.replace(ptr::null_mut());
        // SAFETY: the list holds places of this thread.
        while let Some(lost) = unsafe { rest.as_mut() } {
            let this = std::mem::replace(&mut rest, lost.next);
            if is_gone(lost) {
                self.give_back(this);
            } else {
                lost.next = self.lost.replace(this);
            }
        }
    }

    /// Returns the places of the functions that the thread is in, the newest first, and then the place that is above
    /// every frame.
    fn places(&self) -> impl Iterator<Item = &Place> {
        let mut next = self.top.get();
        std::iter::from_fn(move || {
            // SAFETY: the list holds places of this thread, which are initialized. The list does not change during this
            // iteration.
            let place = unsafe { next.as_ref() }?;
            next = place.next;
            Some(place)
        })
    }

    /// Returns whether the return address at `slot` is the one of recorded functions, and `slot` is within the thread's
    /// own stack: always while the function is alive, and afterwards until the address is overwritten.
    fn is_intact(&self, slot: u64) -> bool {
        if slot.wrapping_sub(self.stack.get()) >= self.stack_len.get() {
            return false;
        }
        let at: *const u64 = ptr::with_exposed_provenance(index(slot));
        // SAFETY: the address is in the thread's own stack, at the return address of one of its functions: mapped, and
        // aligned.
        unsafe { at.read_volatile() == self.returns.get() }
    }

    /// Returns whether the function with this return address was called on the stack of a coroutine that lies within
    /// the thread's own stack. If so, the stack walk from the function reaches the frame of a function that is below
    /// it, or does not end where threads begin.
    fn is_on_inner_stack(&self, slot: u64) -> bool {
        let inner = self.inner.get();
        // SAFETY: the place is the thread's own, and initialized.
        let newest = unsafe { &*self.top.get() };
        let (top, top_slot, parent) = (ptr::from_ref(newest).addr(), newest.slot, newest.parent);
        let is_same = (inner.top, inner.slot, inner.parent) == (top, top_slot, parent);
        if is_same && (inner.low..=inner.high).contains(&slot) {
            return true;
        }
        let mut met = None;
        let mut outermost = (0, 0);
        let walked = super::aside::walk(self.aside.get(), |frame| {
            outermost = (frame.pc, frame.cfa);
            if frame.pc == self.returns.get() && !frame.is_exact {
                // The slot is 16 below the CFA: by the unwind rows of `graph`, the CFA is the caller's stack pointer before
                // the call, plus 8.
                met = Some(frame.cfa - 16);
            }
            if met.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let is_own = match (met, walked) {
            // The function is called by a function that is above it.
            (Some(met), _) => met > slot && self.places().any(|place| place.slot == met),
            (None, Ok(Ended::Outermost)) => super::aside::is_start(outermost.0),
            // Nothing is known.
            _ => false,
        };
        if !is_own && walked == Ok(Ended::Outermost) {
            let low = if is_same && inner.high == outermost.1 { inner.low.min(slot) } else { slot };
            self.inner.set(Inner { low, high: outermost.1, top, slot: top_slot, parent });
        }
        !is_own
    }

    /// # Safety
    /// The thread has ended, and no other code has a reference to this state.
    pub(super) unsafe fn free(thread: NonNull<Thread>) {
        // SAFETY: the caller's.
        let state = unsafe { thread.as_ref() };
        let (home, ring) = (state.home.take(), state.ring_home.take());
        drop(ring);
        // The memory of the state itself is dropped last.
        drop(home);
    }
}

/// Records that an unwinder has left a function. Functions that it had called and that `longjmp` had left are recorded
/// before, and functions whose tail call it was afterwards. The next function that is entered or left gives back the
/// places, because the unwinder reads them after this call.
pub(super) fn unwound(place: *mut Place) {
    // SAFETY: the place belongs to this thread, and is initialized.
    let slot = unsafe { (*place).slot };
    // SAFETY: a thread that has places has a state, which is its own.
    let Some(thread) = (unsafe { local().thread.get().as_ref() }) else { return };
    let mut next = thread.top.get();
    // SAFETY: the list holds places of this thread, which are initialized. The last one is above every frame.
    while let Some(newer) = unsafe { next.as_mut() }.filter(|newer| newer.slot <= slot) {
        left(next, UNWOUND);
        if newer.slot == slot {
            newer.is = Is::Unwound;
        }
        next = newer.next;
    }
}

/// Records once that a function of this thread was left. Called in the thread's order.
fn left(place: *mut Place, what: u32) {
    let local = local();
    let before = local.busy.replace(2);
    // SAFETY: a thread that has places has a state, which is its own.
    let thread = unsafe { local.thread.get().as_ref() };
    // SAFETY: the caller's place belongs to this thread and is initialized. No other code refers to it while `busy` is
    // set.
    let place = unsafe { &mut *place };
    if let Some(thread) = thread.filter(|thread| place.session == thread.session.load(Ordering::Relaxed)) {
        place.session = 0;
        // SAFETY: functions live for ever.
        let number = unsafe { (*place.function).number };
        let head = thread.head.load(Ordering::Relaxed);
        let unit = thread.ring.load(Ordering::Relaxed).wrapping_add(index(head & thread.mask.load(Ordering::Relaxed)));
        // SAFETY: this unit was kept free when the function was entered.
        unsafe { unit.write(Unit { time: now(), number, what }) };
        thread.open.set(thread.open.get() - 1);
        thread.head.store(head + 1, Ordering::Release);
    }
    local.busy.set(before);
}

/// Returns the processor's time stamp.
pub(crate) fn now() -> u64 {
    // SAFETY: every x86-64 processor has this instruction, and Linux lets processes use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Lets this thread join a recording. Returns `None` if it cannot: its stack is not known, or there is no memory.
fn attach(local: &Local, session: u32) -> Option<()> {
    let known = NonNull::new(local.thread.get());
    let (thread, is_new) = match known {
        Some(thread) => (thread, false),
        None => (make(local)?, true),
    };
    // SAFETY: the state is this thread's own. Fields that other threads read are atomic, or written before the store to
    // `session`.
    let state = unsafe { thread.as_ref() };
    let bytes = RING.load(Ordering::Acquire);
    let units = bytes / UNIT;
    if state.mask.load(Ordering::Relaxed) + 1 != units {
        // The old ring is not read any more: its recording is over (`FunctionTrace::finish`).
        let pages = Pages::new(index(bytes)).ok()?;
        state.ring.store(pages.as_mut_ptr().cast(), Ordering::Relaxed);
        state.mask.store(units - 1, Ordering::Relaxed);
        state.room.set(units - 2);
        drop(state.ring_home.replace(Some(pages)));
    }
    state.head.store(0, Ordering::Relaxed);
    state.tail.store(0, Ordering::Relaxed);
    state.open.set(0);
    for count in [&state.dropped, &state.deep, &state.elsewhere] {
        count.store(0, Ordering::Relaxed);
    }
    let mut name = [0_u8; 16];
    // SAFETY: the buffer has sixteen bytes, as PR_GET_NAME requires.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    state.name.set(name);
    // The reader reads the ring from here on.
    state.session.store(session, Ordering::Release);
    local.session.set(session);
    if is_new {
        local.thread.set(thread.as_ptr());
        let mut first = NEW.load(Ordering::Relaxed);
        loop {
            state.next.set(first);
            match NEW.compare_exchange_weak(first, thread.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        if let Ok(key) = u32::try_from(KEY.load(Ordering::Relaxed)) {
            // SAFETY: the key is from `prepare`. For the first keys, the C library has room in the thread itself.
            unsafe { libc::pthread_setspecific(key, thread.as_ptr().cast_const().cast()) };
        }
    }
    Some(())
}

/// Makes a state for this thread, without a ring.
fn make(local: &Local) -> Option<NonNull<Thread>> {
    let (stack, stack_len) = super::stack::own(wide(ptr::from_ref(local).addr()))?;
    let places = size_of::<Thread>().next_multiple_of(align_of::<Place>());
    let all = places + (DEPTH + 1) * size_of::<Place>();
    let aside = all.next_multiple_of(super::aside::PAGE) + super::aside::PAGE;
    let pages = Pages::new(aside + super::aside::STACK).ok()?;
    let thread: *mut Thread = pages.as_mut_ptr().cast();
    let first: *mut Place = pages.as_mut_ptr().wrapping_add(places).cast();
    let state = Thread {
        top: Cell::new(first),
        free: Cell::new(ptr::null_mut()),
        fresh: Cell::new(first.wrapping_add(1)),
        limit: Cell::new(first.wrapping_add(DEPTH + 1)),
        lost: Cell::new(ptr::null_mut()),
        returns: Cell::new(super::graph::returns()),
        inner: Cell::new(Inner::default()),
        aside: Cell::new(pages.as_mut_ptr().wrapping_add(aside + super::aside::STACK)),
        stack: Cell::new(stack),
        stack_len: Cell::new(stack_len),
        ring: AtomicPtr::new(ptr::null_mut()),
        mask: AtomicU64::new(0),
        head: AtomicU64::new(0),
        open: Cell::new(0),
        room: Cell::new(0),
        dropped: AtomicU64::new(0),
        deep: AtomicU64::new(0),
        elsewhere: AtomicU64::new(0),
        session: AtomicU32::new(0),
        tid: AtomicI32::new(Tid::current().get()),
        ended: AtomicBool::new(false),
        name: Cell::new([0; 16]),
        next: Cell::new(ptr::null_mut()),
        home: Cell::new(Some(pages)),
        ring_home: Cell::new(None),
        tail: Apart(AtomicU64::new(0)),
    };
    // SAFETY: the pages are fresh, large enough and aligned.
    unsafe { thread.write(state) };
    // SAFETY: the place is within the same pages, aligned, and not in use yet. The place is above every frame.
    unsafe { first.write(Place::unused(u64::MAX)) };
    NonNull::new(thread)
}

/// Handles the end of a thread that has joined. Called by the C library.
extern "C" fn end(thread: *mut c_void) {
    let local = local();
    // SAFETY: `attach` has given this state of this thread to the C library.
    let Some(state) = (unsafe { thread.cast::<Thread>().as_ref() }) else { return };
    // The thread never returns to the functions that it was in.
    while state.places().next().is_some_and(|place| place.slot != u64::MAX) {
        state.leave_newest();
    }
    local.session.set(ENDING);
    local.thread.set(ptr::null_mut());
    state.ended.store(true, Ordering::Release);
}

/// Takes the threads that have joined since the last call.
pub(crate) fn take_new() -> Vec<Reader> {
    let mut next = NEW.swap(ptr::null_mut(), Ordering::Acquire);
    let mut found = Vec::new();
    while let Some(thread) = NonNull::new(next) {
        // SAFETY: the thread is in the list once, so it has no other reader.
        found.push(unsafe { Reader::new(thread) });
        // SAFETY: the state lives until its reader frees it. `next` was written before the state was added to the list.
        next = unsafe { thread.as_ref() }.next.get();
    }
    // The last thread that has joined is the first in the list.
    found.reverse();
    found
}

/// Returns whether a state is this thread's.
pub(super) fn is_own(thread: *mut Thread) -> bool {
    ptr::eq(local().thread.get(), thread)
}
