//! The signal handler of this crate. All of it is async-signal-safe: it allocates no memory, takes no lock, and calls
//! no function of the C library except for the address of `errno`.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::round;
use crate::signal::SHARED;
use crate::slot::{self, Phase, Slot};
use crate::system::{self, Action, Info};
use crate::task::{self, Tid};
use crate::x86_64::{self, serialise_core, signal_entry};

unsafe extern "C" {
    /// The handler. Calls [`on_signal`]. If that returns an address, jumps there as if the kernel had called that
    /// handler: a handler that ends the thread by unwinding, or inspects its frames, finds the kernel's frame as its
    /// caller and no frame of this crate.
    #[link_name = "modload_threads_handler"]
    static HANDLER: u8;
}

signal_entry!(on_signal);

/// Returns the handler's address, as sigaction(2) takes it.
pub(crate) fn address() -> usize {
    (&raw const HANDLER).expose_provenance()
}

/// The handler of other senders' signals, and the signals that are blocked while it runs. Only the thread whose turn it
/// is writes these, the handler last. A signal that arrives in between finds the old handler or the new one, both of
/// which are glibc's.
static FORWARDED_TO: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static FORWARDED_MASK: AtomicU64 = AtomicU64::new(0);

/// Sets the action that was in force before this crate's, to which other senders' signals go.
pub(crate) fn forward_to(action: Action) {
    FORWARDED_MASK.store(action.mask, Ordering::Relaxed);
    FORWARDED_TO.store(action.handler, Ordering::Release);
}

/// Blocks the signals that the kernel would block for the handler of other senders' signals, and returns that handler;
/// 0 if there is none.
fn forward(signal: i32, context: *mut libc::c_void) -> usize {
    let to = FORWARDED_TO.load(Ordering::Acquire);
    if signal != SHARED || matches!(to, libc::SIG_DFL | libc::SIG_IGN) {
        STRAY.fetch_add(1, Ordering::Relaxed);
        return 0;
    }
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t.
    let context: &libc::ucontext_t = unsafe { &*context.cast() };
    // SAFETY: the kernel's set has 64 signals, and lies at the beginning of the C library's set.
    let interrupted = unsafe { std::ptr::from_ref(&context.uc_sigmask).cast::<u64>().read() };
    let mask = interrupted | FORWARDED_MASK.load(Ordering::Relaxed) | task::bit(signal);
    // The call cannot fail: the arguments are valid.
    let _ = system::mask(libc::SIG_SETMASK, mask);
    to
}

/// A thread that the signal has interrupted.
#[derive(Clone, Copy)]
pub struct Interrupted<'a> {
    tid: Tid,
    context: &'a libc::ucontext_t,
}

impl<'a> Interrupted<'a> {
    pub(crate) fn new(tid: Tid, context: &'a libc::ucontext_t) -> Interrupted<'a> {
        Interrupted { tid, context }
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Returns all registers of the thread, its signal mask and its alternate stack, as the kernel saved them on the
    /// thread's stack. If the thread waited in a system call, `REG_RIP` is behind the call's instruction, or at it if
    /// the call is to be restarted.
    #[must_use]
    pub fn context(&self) -> &'a libc::ucontext_t {
        self.context
    }

    /// Returns the address of the instruction that the thread executes next.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.register(x86_64::INSTRUCTION_POINTER)
    }

    /// Returns the thread's stack pointer. The 128 bytes below it still belong to the interrupted function: the red
    /// zone.
    #[must_use]
    pub fn rsp(&self) -> u64 {
        self.register(x86_64::STACK_POINTER)
    }

    /// Returns the thread's frame pointer, for code that uses one.
    #[must_use]
    pub fn rbp(&self) -> u64 {
        self.register(x86_64::FRAME_POINTER)
    }

    /// Returns a general register, by the C library's number (`libc::REG_RAX`); 0 if there is no register of that
    /// number.
    #[must_use]
    pub fn register(&self, number: libc::c_int) -> u64 {
        x86_64::register(self.context, number).unwrap_or(0)
    }
}

impl fmt::Debug for Interrupted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rip, rsp) = (self.rip(), self.rsp());
        write!(f, "Interrupted {{ tid: {}, rip: {rip:#x}, rsp: {rsp:#x} }}", self.tid)
    }
}

/// The side effects of the signal on other code, and of other senders' signals on this crate, since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct SignalCounts {
    /// System calls that the signal has ended with EINTR: those that SA_RESTART does not restart (signal(7): `poll`,
    /// `select`, `epoll_wait`, `nanosleep`, `sigtimedwait`, `msgrcv`, all calls with a time limit on a socket, and
    /// others). A thread counts when the signal finds it directly behind a system call whose result is EINTR. If
    /// another signal reached the thread at the same moment, that signal may have been the cause.
    pub interrupted: u64,
    /// Signals that arrived after their round was over.
    pub late: u64,
    /// Signals of this number that another sender has sent and that no other handler is for. These signals have no effect.
    pub stray: u64,
}

static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static LATE: AtomicU64 = AtomicU64::new(0);
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Returns the side effects of the signal on other code, and of other senders' signals on this crate.
///
/// Most programs do not notice that their threads are probed or held: the handler's flags restart each system call that
/// can be restarted. The program must call the other system calls again, as for any signal.
#[must_use]
pub fn counts() -> SignalCounts {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    SignalCounts { interrupted: read(&INTERRUPTED), late: read(&LATE), stray: read(&STRAY) }
}

/// Handles the signal. Returns 0, or the handler that the signal is for.
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) -> usize {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo_t, which has the size and alignment of Info, all integers.
    let info: &Info = unsafe { &*info.cast() };
    let tid = system::gettid();
    let Some(slot) = addressed(info, tid) else { return forward(signal, context) };
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t on this thread's stack. No other code has a reference to
    // it yet.
    count_interruption(&Interrupted::new(Tid::new(tid), unsafe { &*context }));
    answer(slot, context);
    0
}

/// Returns the slot that the signal names, if this crate has sent the signal to this thread.
fn addressed(info: &Info, tid: i32) -> Option<&'static Slot> {
    let ours = info.code == libc::SI_QUEUE && info.pid == system::getpid();
    let number = round::slot_number(info.value).filter(|_| ours)?;
    slot::get(number).filter(|slot| slot.tid() == tid)
}

/// Counts a system call that the signal has ended with EINTR.
fn count_interruption(interrupted: &Interrupted<'_>) {
    if x86_64::call_has_failed(interrupted.context, libc::EINTR) {
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers the request in the slot, if the slot is still Asked.
fn answer(slot: &'static Slot, context: *mut libc::ucontext_t) {
    let asked = loop {
        let at = slot.at();
        match at.phase {
            Phase::Asked if slot.go(at, at.to(Phase::Claimed)) => break at,
            Phase::Asked => {}
            Phase::Owed if !slot.go(at, at.to(Phase::Free)) => {}
            late => {
                if late == Phase::Owed {
                    round::debt_is_paid();
                }
                LATE.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    };
    let work = slot.work.load(Ordering::Relaxed);
    if work.is_null() {
        // From here until the gate opens, the context belongs to the holder.
        slot.context.store(context, Ordering::Relaxed);
        slot.words.store(std::ptr::from_ref(crate::word::own_words()).cast_mut(), Ordering::Relaxed);
        slot.put(asked.to(Phase::Here));
        round::count_down(asked.round);
        // The slot may be given to another thread as soon as the gate is open.
        if round::wait_at_gate(asked.round) {
            // Serialises this core: instructions that the holder has changed meanwhile are fetched again.
            serialise_core();
        }
    } else {
        let errno = SavedErrno::save();
        // SAFETY: the kernel passed the pointer; it is valid until the handler returns, and no other code has a
        // reference to it.
        let interrupted = Interrupted::new(Tid::new(slot.tid()), unsafe { &*context });
        // SAFETY: the asker keeps the work that it lends until no slot of its round is Asked or Claimed; this slot is
        // Claimed.
        unsafe { round::Work::run(work, interrupted) };
        drop(errno);
        slot.put(asked.to(Phase::Here));
        round::count_down(asked.round);
    }
}

/// The `errno` of the code that a signal handler has interrupted. Dropping the value restores it. Async-signal-safe.
#[derive(Debug)]
#[must_use = "dropping it restores errno"]
pub struct SavedErrno {
    place: *mut libc::c_int,
    value: libc::c_int,
}

impl SavedErrno {
    /// Saves the `errno` of this thread.
    pub fn save() -> SavedErrno {
        // SAFETY: the function takes no argument and returns the place of this thread's errno, which exists from the
        // thread's beginning.
        let place = unsafe { libc::__errno_location() };
        // SAFETY: the place is an int of this thread alone.
        SavedErrno { place, value: unsafe { place.read() } }
    }
}

impl Drop for SavedErrno {
    fn drop(&mut self) {
        // SAFETY: as above, and it is the same thread: the type is not `Send`.
        unsafe { self.place.write(self.value) };
    }
}
