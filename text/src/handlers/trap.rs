//! The SIGTRAP handler: diverts threads that hit a trap of a batch that is being poked, and reports calls into text
//! that is not published yet, or unloaded.
//!
//! For such a call, the handler writes one line to the owner's descriptor. Then SIGTRAP takes its usual course: the
//! previous handler is called, and without one the process dies at the instruction, as it would have without this
//! handler. Other traps (a breakpoint of the program's own, a module's `int3` in published text, a SIGTRAP that a
//! process sends, a debugger's single step) are passed on without a report.

use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;

use modload_edit::Addr;
use modload_threads::SavedErrno;
use modload_threads::frames::{Memory, ProcessMemory};

use crate::address_space::pointer::pointer;
use crate::allocation::arena;
use crate::handlers::batch;
use crate::handlers::batch::TrapInFlight;
use crate::handlers::report::report;
use crate::handlers::x86_64::{LONG_TRAP, emulate, resume_at, trap_address};
use crate::vocabulary::machine::INT3;
use crate::writing::registered;

/// The action that was installed before this crate's.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Returns an action with no handler, no flags, and an empty mask.
fn default_action() -> libc::sigaction {
    // SAFETY: sigaction is a C struct of integers and an optional function pointer; all zeros is a value of it.
    unsafe { mem::zeroed() }
}

pub(crate) fn install() -> io::Result<()> {
    let mut previous = default_action();
    // SAFETY: a null action only queries; `previous` is a local variable.
    if unsafe { libc::sigaction(libc::SIGTRAP, ptr::null(), &raw mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Stored before the handler can run, because the handler needs it.
    PREVIOUS.get_or_init(|| previous);
    let mut action = default_action();
    action.sa_sigaction = handler_address();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // All signals are blocked. Another handler that ran on top of this one, with SIGTRAP blocked, and hit a trap at a
    // site would be killed there. The C library's own signals, which sigfillset leaves out, could end the thread here
    // by cancellation.
    // SAFETY: a signal set consists of its bits, and all of them may be set.
    unsafe { ptr::write_bytes(&raw mut action.sa_mask, 0xff, 1) };
    // SAFETY: the handler has the signature that SA_SIGINFO requires and calls only async-signal-safe functions.
    if unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns whether this crate's handler still gets SIGTRAP first.
pub(crate) fn is_installed() -> bool {
    let mut current = default_action();
    // SAFETY: a null action only queries; `current` is a local variable.
    let failed = unsafe { libc::sigaction(libc::SIGTRAP, ptr::null(), &raw mut current) };
    failed == 0 && current.sa_sigaction == handler_address()
}

fn handler_address() -> libc::sighandler_t {
    let handler: Handler = on_trap;
    #[expect(clippy::as_conversions, reason = "sigaction takes the handler's address as an integer")]
    let address = handler as libc::sighandler_t;
    address
}

extern "C" fn on_trap(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // Reading the instruction and writing the report are system calls, which change errno.
    let errno = SavedErrno::save();
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: with SA_SIGINFO the kernel passes a valid ucontext_t, and no other code has a reference to it.
    let at = trap_address(unsafe { &(*context).uc_mcontext });
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t.
    let code = unsafe { (*info).si_code };
    // SAFETY: the context is valid, see above, and no other code has a reference to it.
    if code == libc::SI_KERNEL && unsafe { divert_from_trap(at, &mut *context) } {
        return;
    }
    let is_module_text = code == libc::SI_KERNEL && arena::text_contains(at);
    let stopped_at = if code == libc::SI_KERNEL && was_int3(at) { StoppedAt::Int3 } else { StoppedAt::Other };
    if is_module_text {
        report(at);
    }
    drop(errno);
    let previous = PREVIOUS.get().copied().unwrap_or_else(default_action);
    // SAFETY: the context is valid, see above.
    let interrupted = unsafe { (*context).uc_sigmask };
    set_mask_for_previous(&previous, &interrupted);
    match previous.sa_sigaction {
        // A signal that another process or thread has sent may be ignored: its code is not above zero.
        libc::SIG_IGN if code <= libc::SI_USER => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // The kernel kills a process that ignores a trap. Without a handler, an INT3 is executed once more, and
            // kills; any other trap is raised once more, and takes effect when the handler has returned.
            let default = default_action();
            // SAFETY: a default action is valid, and sigaction is async-signal-safe.
            unsafe { libc::sigaction(libc::SIGTRAP, &raw const default, ptr::null_mut()) };
            match stopped_at {
                // SAFETY: the context is valid, and no other code has a reference to it, see above. The trap is repeated
                // at the INT3 itself.
                StoppedAt::Int3 => resume_at(at, unsafe { &mut (*context).uc_mcontext }),
                // SAFETY: raise takes a number and is async-signal-safe.
                StoppedAt::Other => unsafe {
                    libc::raise(libc::SIGTRAP);
                },
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the handler was installed with SA_SIGINFO, so it has this signature.
            let handler: Handler = unsafe { mem::transmute::<libc::sighandler_t, Handler>(handler) };
            handler(signal, info, context.cast());
        }
        handler => {
            // SAFETY: the handler was installed without SA_SIGINFO, so it has this signature.
            let handler = unsafe { mem::transmute::<libc::sighandler_t, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Diverts a thread that has hit an INT3 of a batch at `at`: as if the new instruction were there, or, if the batch is
/// over, to the instruction itself. Returns whether the thread was diverted.
fn divert_from_trap(at: Addr, context: &mut libc::ucontext_t) -> bool {
    if !is_pokeable(at) {
        return false;
    }
    // Counted until `context` has the address at which the thread resumes.
    let in_flight = TrapInFlight::begin();
    loop {
        let changes = batch::change_count();
        if let Some(effect) = batch::effect_at(&in_flight, at) {
            emulate(effect, &mut context.uc_mcontext);
            return true;
        }
        // The trap has been overwritten since the thread hit it: the batch is complete, or a module is published now
        // where no text was before. An `int $3` of two bytes belongs to other code.
        if !is_int3(at) && !is_two_byte_int3(at) {
            resume_at(at, &mut context.uc_mcontext);
            return true;
        }
        if changes == batch::change_count() {
            return false;
        }
    }
}

/// Sets the signal mask that the kernel would have set for the previous handler. This crate's handler runs with all
/// signals blocked.
fn set_mask_for_previous(previous: &libc::sigaction, interrupted: &libc::sigset_t) {
    for (how, set) in [(libc::SIG_SETMASK, interrupted), (libc::SIG_BLOCK, &previous.sa_mask)] {
        // SAFETY: changes the mask of this thread from a valid set; async-signal-safe.
        unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) };
    }
    if previous.sa_flags & libc::SA_NODEFER == 0 {
        let mut trap = previous.sa_mask;
        // SAFETY: adds a signal to a local set.
        unsafe { libc::sigaddset(&raw mut trap, libc::SIGTRAP) };
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const trap, ptr::null_mut()) };
    }
}

/// The instruction at which the thread was stopped.
#[derive(Clone, Copy)]
enum StoppedAt {
    Int3,
    /// No instruction that traps: for example, the signal was sent.
    Other,
}

/// Returns whether a byte of module text, or of registered text, is the one-byte INT3; `int $3` has two bytes.
fn is_int3(at: Addr) -> bool {
    // SAFETY: a byte of text that is mapped and readable.
    unsafe { ptr::read_volatile(pointer(at)) == INT3 }
}

/// Returns whether the instruction that the processor has just executed, anywhere, is the one-byte INT3. The byte need
/// not be readable, so the kernel reads it; an unreadable byte counts as another instruction.
fn was_int3(at: Addr) -> bool {
    let mut byte = [0];
    ProcessMemory::own().read(at.get(), &mut byte) && byte == [INT3]
}

/// Returns whether an address lies in text that a batch may change: text of modules, or registered text of the host.
fn is_pokeable(at: Addr) -> bool {
    arena::text_contains(at) || registered::host_text_containing(at).is_some()
}

/// Returns whether the instruction that ends with this byte of module text, or of registered text, is `int $3` of two
/// bytes.
fn is_two_byte_int3(at: Addr) -> bool {
    let first = at.offset(-1);
    if !is_pokeable(first) {
        return false;
    }
    // SAFETY: two bytes of text that is mapped and readable.
    unsafe { ptr::read_volatile(pointer(first).cast::<[u8; 2]>()) == LONG_TRAP }
}
