//! The one real-time signal of the process: which it is, and that its handler is ours.

use std::fmt;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::error::Error;
use crate::handler;
use crate::task::{self, Tid};
use crate::turn::Turn;

/// 0: none yet. Changed only in one's turn.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// What happens on a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// Nobody handles it: it would end the process.
    Default,
    /// It is ignored.
    Ignored,
    /// A handler is called.
    Handled {
        /// The handler's address.
        at: usize,
    },
}

impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disposition::Default => f.write_str("not handled"),
            Disposition::Ignored => f.write_str("ignored"),
            Disposition::Handled { at } => write!(f, "handled at {at:#x}"),
        }
    }
}

/// Names the signal to be used, and installs its handler.
///
/// Without this call, the first use takes the highest real-time signal that nobody handles. Real-time signals are
/// those from the C library's SIGRTMIN (it keeps some for itself) to SIGRTMAX. A program that is run under gdb wants
/// `handle SIG64 nostop noprint pass`, whichever number it is.
///
/// # Errors
///
/// [`Error::NotRealTime`], [`Error::Taken`], [`Error::Chosen`] if another one is in use already, [`Error::Action`],
/// [`Error::Nested`] for who holds the others. Naming the one in use is no error.
pub fn use_signal(signal: i32) -> Result<(), Error> {
    let _turn = Turn::take(None)?;
    match SIGNAL.load(Ordering::Acquire) {
        0 => {}
        chosen if chosen == signal => return Ok(()),
        chosen => return Err(Error::Chosen { signal, chosen }),
    }
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    if !(first..=last).contains(&signal) {
        return Err(Error::NotRealTime { signal, first, last });
    }
    match disposition(signal)? {
        Disposition::Default => install(signal),
        disposition => Err(Error::Taken { signal, disposition }),
    }
}

/// The signal in use; `None` if none was needed yet.
#[must_use]
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::Acquire)).filter(|signal| *signal != 0)
}

/// The signal, with a handler that is ours: chosen and installed if it has to be. In one's turn.
///
/// Somebody else's handler would not answer, and with none the signal would end the process. So it is looked at each
/// time, which costs one system call.
pub(crate) fn ready() -> Result<i32, Error> {
    let signal = match signal() {
        Some(signal) => signal,
        None => choose()?,
    };
    match disposition(signal)? {
        Disposition::Handled { at } if at == handler::address() => Ok(signal),
        disposition => Err(Error::Replaced { signal, disposition }),
    }
}

/// In one's turn.
fn choose() -> Result<i32, Error> {
    // Signals go by the ids that /proc lists, so these must be the ones of our own name space.
    let tid = Tid::current();
    match task::status(tid) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(Error::ForeignList { tid }),
        Err(source) => return Err(Error::List { source }),
    }
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    for signal in (first..=last).rev() {
        if disposition(signal)? == Disposition::Default {
            install(signal)?;
            return Ok(signal);
        }
    }
    Err(Error::NoneFree { first, last })
}

fn disposition(signal: i32) -> Result<Disposition, Error> {
    let mut action = no_action();
    // SAFETY: a null action only asks; `action` is ours.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } != 0 {
        return Err(Error::Action { signal, source: io::Error::last_os_error() });
    }
    Ok(match action.sa_sigaction {
        libc::SIG_DFL => Disposition::Default,
        libc::SIG_IGN => Disposition::Ignored,
        at => Disposition::Handled { at },
    })
}

/// Installs the handler. Its flags:
///
/// - SA_RESTART, so that most system calls that we interrupt go on by themselves.
/// - SA_ONSTACK: who has given a thread an alternate stack may have done so because its own is small (a coroutine's, a
///   goroutine's) or because it may be full. The handler takes few hundred bytes beside the kernel's frame, which has
///   to fit on an alternate stack anyway. A thread that stands on its alternate stack already (in a handler of its
///   own) stays there with and without the flag; one that has none gets the frame below its own stack pointer.
/// - All signals are blocked meanwhile: no other handler runs in a thread that is held.
fn install(signal: i32) -> Result<(), Error> {
    let mut action = no_action();
    action.sa_sigaction = handler::address();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // The C library's own signals, too, which sigfillset leaves out: cancellation must not end a thread that is held.
    // SAFETY: a set of signals is its bits, and all of them may be set.
    unsafe { ptr::write_bytes(&raw mut action.sa_mask, 0xff, 1) };
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and is async-signal-safe.
    if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
        return Err(Error::Action { signal, source: io::Error::last_os_error() });
    }
    SIGNAL.store(signal, Ordering::Release);
    Ok(())
}

fn no_action() -> libc::sigaction {
    // SAFETY: sigaction is a C struct of integers and an optional function pointer; all zeros is a value of it.
    unsafe { mem::zeroed() }
}
