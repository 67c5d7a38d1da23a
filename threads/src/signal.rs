//! The one signal of the process by which threads are asked: its choice, and the check that its handler is this
//! crate's.
//!
//! The default is SIGSETXID, signal 33, which is shared with glibc. glibc sends the signal to each thread for setuid(2)
//! and similar calls, and therefore keeps it out of every mask and every set that a program passes to glibc. So a
//! thread that "blocks all signals", or that waits for all of them in sigwait(3) or by signalfd(2), can still be asked,
//! and does not receive a signal that it did not expect. glibc's signals have the code `SI_TKILL` and go on to glibc's
//! handler ([`crate::handler`]); this crate's signals have `SI_QUEUE`, which glibc's handler ignores.

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

/// The signal in use; 0 if none is chosen yet. Only the thread whose turn it is changes this.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// glibc's SIGSETXID (nptl, `__SIGRTMIN + 1`).
pub(crate) const SHARED: i32 = 33;

/// Whether the C library shares the signal as described above.
const SHARES: bool = cfg!(target_env = "gnu");

/// The effect of a signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// There is no handler: the signal would end the process.
    Default,
    /// The signal is ignored.
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

/// Sets the signal to use, and installs its handler.
///
/// Without this call, the first use takes signal 33, which glibc keeps open in every thread. With another C library the
/// first use takes the highest real-time signal that has no handler. Real-time signals are those from the C library's
/// SIGRTMIN to SIGRTMAX. A thread may block a signal that is set here, and can then be neither held nor probed. A
/// program that runs under gdb needs `handle SIG64 nostop noprint pass`, with the number that was set; gdb passes
/// signal 33 on silently.
///
/// # Errors
///
/// [`Error::NotRealTime`], [`Error::Taken`], [`Error::Chosen`] if another signal is in use already, [`Error::Action`],
/// [`Error::Nested`] if the caller holds the other threads. Setting the signal that is in use is no error.
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

/// Returns the signal in use; `None` if none was needed yet.
#[must_use]
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::Acquire)).filter(|signal| *signal != 0)
}

/// Returns the signal, after making sure that its handler is this crate's. Chooses and installs the signal if
/// necessary. The caller must have its turn.
///
/// Another handler would not answer, and without a handler the signal would end the process. So each call checks the
/// handler, which costs one system call.
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

/// Installs the handler for the shared signal, and records the handler before it, to which other senders' signals go.
fn share() -> Result<(), Error> {
    let failed = |source| Error::Action { signal: SHARED, source };
    let before = system::action(SHARED).map_err(failed)?;
    let restorer = if before.flags & SA_RESTORER != 0 { before.restorer } else { restorer()? };
    handler::forward_to(before);
    let flags = u64::try_from(libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK).unwrap_or_default() | SA_RESTORER;
    let ours = Action { handler: handler::address(), flags, restorer, mask: u64::MAX };
    // SAFETY: the handler has the signature that SA_SIGINFO requires, and is async-signal-safe; the restorer is the C
    // library's.
    unsafe { system::set_action(SHARED, &ours) }.map_err(failed)?;
    SIGNAL.store(SHARED, Ordering::Release);
    Ok(())
}

/// Returns the C library's code that handlers return to, which unwinders know. The C library passes that code with each
/// action that it sets, so this function sets the action of a signal without a handler once more, unchanged.
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

/// Checks that the threads of this process can be listed and described: every hold and every inspection needs that.
///
/// # Errors
/// [`Error::List`] if `/proc` is missing or may not be read; [`Error::ForeignList`] if it belongs to another PID name
/// space.
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

/// Chooses a signal and installs its handler. The caller must have its turn.
fn choose() -> Result<i32, Error> {
    // Signals are sent to the ids that /proc lists, so these must be ids of this process's own name space.
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

/// Installs the handler, with these settings:
///
/// - SA_RESTART, so that most interrupted system calls are restarted by the kernel.
/// - SA_ONSTACK: a program may have given a thread an alternate stack because the thread's own stack is small (a
///   coroutine's, a goroutine's) or may be full. The handler uses a few hundred bytes in addition to the kernel's
///   frame, which has to fit on an alternate stack anyway. A thread that already runs on its alternate stack (in a
///   handler of its own) stays there with and without the flag; a thread without one gets the frame below its own stack
///   pointer.
/// - All signals are blocked meanwhile: no other handler runs in a thread that is held.
fn install(signal: i32) -> Result<(), Error> {
    let mut action = no_action();
    action.sa_sigaction = handler::address();
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // The C library's own signals, which sigfillset leaves out, are included: cancellation must not end a thread that
    // is held.
    // SAFETY: a signal set consists of its bits, and all of them may be set.
    unsafe { ptr::write_bytes(&raw mut action.sa_mask, 0xff, 1) };
    // SAFETY: the handler has the signature that SA_SIGINFO requires, and is async-signal-safe.
    if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
        return Err(Error::Action { signal, source: io::Error::last_os_error() });
    }
    SIGNAL.store(signal, Ordering::Release);
    Ok(())
}

/// Returns an action with no handler, no flags, and an empty mask.
fn no_action() -> libc::sigaction {
    // SAFETY: sigaction is a C struct of integers and an optional function pointer; all zeros is a value of it.
    unsafe { mem::zeroed() }
}
