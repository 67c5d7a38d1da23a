//! What a thread does when our signal finds it. All of it is async-signal-safe: no memory, no lock, no call into the C
//! library but for the address of `errno`.

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::round;
use crate::signal::SHARED;
use crate::slot::{self, Phase, Slot};
use crate::system::{self, Action, Info};
use crate::task::{self, Tid};

unsafe extern "C" {
    /// The handler. Calls [`on_signal`]; if that returns an address, jumps there as if the kernel had called it: a handler
    /// that ends the thread by unwinding, or looks at its frames, finds the kernel's frame below itself and none of ours.
    #[link_name = "modload_threads_handler"]
    static HANDLER: u8;
}

std::arch::global_asm!(
    ".pushsection .text.modload_threads_handler, \"ax\", @progbits",
    ".balign 16",
    ".hidden modload_threads_handler",
    ".globl modload_threads_handler",
    ".type modload_threads_handler, @function",
    "modload_threads_handler:",
    ".cfi_startproc",
    "push rdi",
    ".cfi_def_cfa_offset 16",
    "push rsi",
    ".cfi_def_cfa_offset 24",
    "push rdx",
    ".cfi_def_cfa_offset 32",
    "call {on_signal}",
    "pop rdx",
    ".cfi_def_cfa_offset 24",
    "pop rsi",
    ".cfi_def_cfa_offset 16",
    "pop rdi",
    ".cfi_def_cfa_offset 8",
    "test rax, rax",
    "jnz 2f",
    "ret",
    "2:",
    "jmp rax",
    ".cfi_endproc",
    ".size modload_threads_handler, . - modload_threads_handler",
    ".popsection",
    on_signal = sym on_signal,
);

/// Returns the handler's address, as sigaction(2) takes it.
pub(crate) fn address() -> usize {
    (&raw const HANDLER).expose_provenance()
}

/// The handler of other senders' signals, and the signals that are blocked while it runs. Written in one's turn, the handler
/// last; a signal that comes in between finds the old handler or the new one, both of which are glibc's.
static FORWARDED_TO: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static FORWARDED_MASK: AtomicU64 = AtomicU64::new(0);

/// Names the action that was in force before ours, to which other senders' signals go.
pub(crate) fn forward_to(action: Action) {
    FORWARDED_MASK.store(action.mask, Ordering::Relaxed);
    FORWARDED_TO.store(action.handler, Ordering::Release);
}

/// Returns the handler to which a signal of another sender goes, after having blocked what the kernel would block for that
/// handler; 0 if there is none.
fn forward(signal: i32, context: *mut libc::c_void) -> usize {
    let to = FORWARDED_TO.load(Ordering::Acquire);
    if signal != SHARED || matches!(to, libc::SIG_DFL | libc::SIG_IGN) {
        STRAY.fetch_add(1, Ordering::Relaxed);
        return 0;
    }
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t.
    let context: &libc::ucontext_t = unsafe { &*context.cast() };
    // SAFETY: the kernel's set has 64 signals, and stands at the beginning of the C library's.
    let interrupted = unsafe { std::ptr::from_ref(&context.uc_sigmask).cast::<u64>().read() };
    let mask = interrupted | FORWARDED_MASK.load(Ordering::Relaxed) | task::bit(signal);
    // Cannot fail: the arguments are good.
    let _ = system::mask(libc::SIG_SETMASK, mask);
    to
}

/// A thread where our signal has found it.
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

    /// All its registers, its signal mask and its alternate stack, as the kernel saved them on its stack. With
    /// `REG_RIP` behind a system call that it waited in, or at it, if that is to be restarted.
    #[must_use]
    pub fn context(&self) -> &'a libc::ucontext_t {
        self.context
    }

    /// The instruction it executes next.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.register(libc::REG_RIP)
    }

    /// Its stack pointer. The 128 bytes below are still its own: the red zone.
    #[must_use]
    pub fn rsp(&self) -> u64 {
        self.register(libc::REG_RSP)
    }

    /// Its frame pointer, where code uses one.
    #[must_use]
    pub fn rbp(&self) -> u64 {
        self.register(libc::REG_RBP)
    }

    /// One of its general registers, by the C library's number (`libc::REG_RAX`); 0 if there is none of that number.
    #[must_use]
    pub fn register(&self, number: libc::c_int) -> u64 {
        let register = usize::try_from(number).ok().and_then(|number| self.context.uc_mcontext.gregs.get(number));
        register.map_or(0, |register| register.cast_unsigned())
    }
}

impl fmt::Debug for Interrupted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rip, rsp) = (self.rip(), self.rsp());
        write!(f, "Interrupted {{ tid: {}, rip: {rip:#x}, rsp: {rsp:#x} }}", self.tid)
    }
}

/// What our signal did to others, and others with our signal, since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Counts {
    /// System calls that we have ended with EINTR: those that SA_RESTART does not restart (signal(7): `poll`, `select`,
    /// `epoll_wait`, `nanosleep`, `sigtimedwait`, `msgrcv`, whatever has a time limit on a socket, and others).
    /// A thread counts when our signal finds it right behind a system call whose result is EINTR. If another signal
    /// reached it in the same moment, that one may have been the cause.
    pub interrupted: u64,
    /// Signals that came when nobody asked any more.
    pub late: u64,
    /// Signals of our number that another sender has sent and that no other handler is for. They do nothing.
    pub stray: u64,
}

static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static LATE: AtomicU64 = AtomicU64::new(0);
static STRAY: AtomicU64 = AtomicU64::new(0);

/// What our signal did to others, and others with our signal.
///
/// Without it, most programs would not notice being asked or held: the handler restarts what can be restarted. What
/// cannot is to be called again by the program, as for any signal.
#[must_use]
pub fn counts() -> Counts {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Counts { interrupted: read(&INTERRUPTED), late: read(&LATE), stray: read(&STRAY) }
}

/// Returns 0, or the handler that the signal is for.
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) -> usize {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo_t, which has the size and alignment of Info, all integers.
    let info: &Info = unsafe { &*info.cast() };
    let tid = system::gettid();
    let Some(slot) = addressed(info, tid) else { return forward(signal, context) };
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t on this thread's stack. Nobody else knows of it yet.
    count_interruption(&Interrupted::new(Tid::new(tid), unsafe { &*context }));
    answer(slot, context);
    0
}

/// The slot that the signal speaks of, if we have sent it to this thread.
fn addressed(info: &Info, tid: i32) -> Option<&'static Slot> {
    let ours = info.code == libc::SI_QUEUE && info.pid == system::getpid();
    let number = round::slot_number(info.value).filter(|_| ours)?;
    slot::get(number).filter(|slot| slot.tid() == tid)
}

/// Behind a `syscall` instruction rcx is rip, which hardly any other instruction leaves so; of a call that is to be
/// restarted, rip is in front of it.
fn count_interruption(interrupted: &Interrupted<'_>) {
    let result = interrupted.register(libc::REG_RAX).cast_signed();
    let behind_call = interrupted.register(libc::REG_RCX) == interrupted.rip();
    if behind_call && result == -i64::from(libc::EINTR) {
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Does what the slot asks for, if it still does.
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
        // From here to the gate's opening it is the holder's.
        slot.context.store(context, Ordering::Relaxed);
        slot.words.store(std::ptr::from_ref(crate::word::own_words()).cast_mut(), Ordering::Relaxed);
        slot.put(asked.to(Phase::Here));
        round::one_less(asked.round);
        // The slot may be another thread's as soon as the gate is open.
        if round::wait_at_gate(asked.round) {
            // Serialises this core: instructions that somebody has changed meanwhile are fetched anew.
            let _ = __cpuid(0);
        }
    } else {
        let errno = Errno::save();
        // SAFETY: as the kernel passed it; it is valid until the handler returns, and nobody else knows of it.
        let interrupted = Interrupted::new(Tid::new(slot.tid()), unsafe { &*context });
        // SAFETY: the asker keeps what it lends until no slot of its round is Asked or Claimed; ours is Claimed.
        unsafe { round::Work::run(work, interrupted) };
        drop(errno);
        slot.put(asked.to(Phase::Here));
        round::one_less(asked.round);
    }
}

/// The interrupted code's `errno`, put back when dropped. Our own system calls never touch it.
struct Errno {
    place: *mut libc::c_int,
    value: libc::c_int,
}

impl Errno {
    fn save() -> Errno {
        // SAFETY: it takes nothing and says where this thread's errno is, which exists from the thread's beginning.
        let place = unsafe { libc::__errno_location() };
        // SAFETY: it is an int of this thread's alone.
        Errno { place, value: unsafe { place.read() } }
    }
}

impl Drop for Errno {
    fn drop(&mut self) {
        // SAFETY: as above, and it is the same thread: the type is not `Send`.
        unsafe { self.place.write(self.value) };
    }
}
