//! The one signal of the process by which threads are asked: which it is, and that its handler is ours.
//!
//! By default it is SIGSETXID, signal 33, which is shared with glibc. glibc sends it to each thread for setuid(2) and its like,
//! and therefore keeps it out of every mask and every set that a program passes to it: a thread that "blocks all signals", or
//! that waits for all of them in sigwait(3) or by signalfd(2), can still be asked, and is not handed a signal that it did not
//! expect. What glibc sends has the code `SI_TKILL` and goes on to glibc's handler ([`crate::handler`]); what this crate sends
//! has `SI_QUEUE`, which glibc's handler ignores.

use std::fmt;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::error::Error;
use crate::handler;
use crate::system::{self, Action, SA_RESTORER};
use crate::task::{self, Tasks, Tid};
use crate::turn::Turn;

/// 0: none yet. Changed only in one's turn.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// glibc's SIGSETXID (nptl, `__SIGRTMIN + 1`).
pub(crate) const SHARED: i32 = 33;

/// Whether the C library is one that shares the signal as described above.
const SHARES: bool = cfg!(target_env = "gnu");

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
/// Without this call, the first use takes signal 33, which glibc keeps open in every thread. With another C library the
/// first use takes the highest real-time signal that has no handler. Real-time signals are those from the C library's
/// SIGRTMIN to SIGRTMAX. A thread may block a signal that is named here, and can then be neither held nor asked. A program
/// that is run under gdb wants `handle SIG64 nostop noprint pass`, with the number that was named; gdb passes signal 33 on
/// without a word.
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
        // glibc installs its handler when the process's first thread is created.
        _ if signal == SHARED => share().map(|()| signal),
        disposition => Err(Error::Replaced { signal, disposition }),
    }
}

/// Installs the handler for the signal that is shared, and remembers the one before it, to which other senders' signals go.
fn share() -> Result<(), Error> {
    let failed = |source| Error::Action { signal: SHARED, source };
    let before = system::action(SHARED).map_err(failed)?;
    let restorer = if before.flags & SA_RESTORER != 0 { before.restorer } else { restorer()? };
    handler::forward_to(before);
    let flags = u64::try_from(libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK).unwrap_or_default() | SA_RESTORER;
    let ours = Action { handler: handler::address(), flags, restorer, mask: u64::MAX };
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and is async-signal-safe; the restorer is the C library's.
    unsafe { system::set_action(SHARED, &ours) }.map_err(failed)?;
    SIGNAL.store(SHARED, Ordering::Release);
    Ok(())
}

/// Returns the C library's code that handlers return to, which unwinders know. The C library passes it with each action that
/// it sets, so the action of a signal that has none is set once more, as it is.
fn restorer() -> Result<usize, Error> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    for signal in (first..=last).rev() {
        if disposition(signal)? == Disposition::Default {
            let failed = |source| Error::Action { signal, source };
            let default = no_action();
            // SAFETY: the action is a default one, as it was.
            if unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) } != 0 {
                return Err(failed(io::Error::last_os_error()));
            }
            return system::action(signal).map(|action| action.restorer).map_err(failed);
        }
    }
    Err(Error::NoneFree { first, last })
}

/// Whether the threads of this process can be listed and described: what every hold and every look needs.
///
/// # Errors
/// [`Error::List`]: `/proc` is missing or may not be read; [`Error::ForeignList`]: it is another name space's.
pub fn can_see() -> Result<(), Error> {
    let list = |source| Error::List { source };
    Tasks::open().and_then(|tasks| tasks.count()).map_err(list)?;
    let tid = Tid::current();
    match task::status(tid) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Error::ForeignList { tid }),
        Err(source) => Err(list(source)),
    }
}

/// In one's turn.
fn choose() -> Result<i32, Error> {
    // Signals go by the ids that /proc lists, so these must be the ones of our own name space.
    can_see()?;
    if SHARES {
        return share().map(|()| SHARED);
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
    let action = system::action(signal).map_err(|source| Error::Action { signal, source })?;
    Ok(match action.handler {
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

/// No handler, no flags, an empty mask.
fn no_action() -> libc::sigaction {
    // SAFETY: sigaction is a C struct of integers and an optional function pointer; all zeros is a value of it.
    unsafe { mem::zeroed() }
}
