//! The errors of this crate: the threads that could not be reached, and why.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::signal::Disposition;
use crate::task::{Name, ThreadState, Tid};

/// Threads could not be probed or held. After any of these errors, the failed call holds no thread.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The requested signal is not one of the signals that programs may use freely.
    #[error("signal {signal} is not a real-time signal: those of this process are {first} to {last}")]
    NotRealTime {
        /// The requested signal.
        signal: i32,
        /// The first real-time signal of this process.
        first: i32,
        /// The last real-time signal of this process.
        last: i32,
    },
    /// The requested signal has a handler, or is ignored.
    #[error("signal {signal} is used by other code of this process: it is {disposition}")]
    Taken {
        /// The requested signal.
        signal: i32,
        /// The current disposition of the signal.
        disposition: Disposition,
    },
    /// The signal was chosen before, by another call or by the first use.
    #[error("signal {chosen} is in use already, so signal {signal} cannot be")]
    Chosen {
        /// The requested signal.
        signal: i32,
        /// The signal in use.
        chosen: i32,
    },
    /// No real-time signal is free.
    #[error("each real-time signal from {first} to {last} has a handler or is ignored")]
    NoneFree {
        /// The first real-time signal of this process.
        first: i32,
        /// The last real-time signal of this process.
        last: i32,
    },
    /// Other code has replaced this crate's handler for the signal.
    #[error(
        "other code has replaced the handler of signal {signal}, which modload holds threads with: it is {disposition}"
    )]
    Replaced {
        /// The signal that this crate uses.
        signal: i32,
        /// The current disposition of the signal.
        disposition: Disposition,
    },
    /// The handler could not be installed or read.
    #[error("sigaction(2) of signal {signal}")]
    Action {
        /// The signal.
        signal: i32,
        /// The kernel's error.
        source: io::Error,
    },
    /// The list of threads could not be read.
    #[error("reading /proc/self/task, the list of this process's threads")]
    List {
        /// The kernel's error.
        source: io::Error,
    },
    /// The list of threads is of another PID name space: the calling thread is not in the list.
    #[error("/proc belongs to another PID name space: it does not list thread {tid}, which reads it")]
    ForeignList {
        /// The thread that reads.
        tid: Tid,
    },
    /// The calling thread holds the others already.
    #[error("this thread holds all others already")]
    Nested,
    /// Another thread had its turn, and its turn took too long.
    #[error("thread {holder} was still holding or asking the others after {limit:?}")]
    Busy {
        /// The thread whose turn it was at the end of the wait.
        holder: Tid,
        /// The time limit of the wait.
        limit: Duration,
    },
    /// Threads did not answer.
    #[error("not reached within {limit:?}: {stragglers}")]
    NotReached {
        /// These threads.
        stragglers: Box<Stragglers>,
        /// The time limit of the wait.
        limit: Duration,
    },
    /// A thread that cannot be sent a signal was inspected in its sleep, and ran before the inspection was over, each
    /// time.
    #[error("thread {tid} \"{}\" cannot be asked, and ran during each look at it within {limit:?}", shown(*name))]
    Awake {
        /// The thread.
        tid: Tid,
        /// The thread's name, if it could be read.
        name: Option<Name>,
        /// The time limit of the inspection.
        limit: Duration,
    },
    /// Threads start and end faster than they can be counted.
    #[error("within {limit:?} it could not be made sure that all of {counted} threads are known; {known} are")]
    Restless {
        /// The number of threads that this crate knows.
        known: u64,
        /// The number of threads that the kernel counts.
        counted: u64,
        /// The time limit of the attempts.
        limit: Duration,
    },
}

fn shown(name: Option<Name>) -> String {
    name.map(|name| name.to_string()).unwrap_or_default()
}

/// The reason why a thread did not enter the signal handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum StragglerReason {
    /// The thread blocks the signal.
    Blocks {
        /// The signal.
        signal: i32,
    },
    /// The thread waits for the signal, for example by sigwait(3), and would take the signal for one of its own.
    Waits {
        /// The signal.
        signal: i32,
    },
    /// A tracer has stopped the thread.
    Traced {
        /// The tracer's process.
        by: i32,
    },
    /// Job control has stopped the thread.
    Stopped,
    /// The thread waits in the kernel in a state that no signal interrupts.
    Uninterruptible,
    /// The kernel has no room for another queued signal: RLIMIT_SIGPENDING.
    QueueFull,
    /// The thread would enter the handler, but did not do so in time.
    Late {
        /// The state of the thread.
        state: ThreadState,
    },
    /// `/proc` did not give a reason.
    Unknown,
}

impl fmt::Display for StragglerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StragglerReason::Blocks { signal } => write!(f, "blocks signal {signal}"),
            StragglerReason::Waits { signal } => write!(f, "waits for signal {signal} by rt_sigtimedwait"),
            StragglerReason::Traced { by } => write!(f, "is stopped by its tracer, process {by}"),
            StragglerReason::Stopped => f.write_str("is stopped by job control"),
            StragglerReason::Uninterruptible => f.write_str("waits in the kernel uninterruptibly, in vfork say"),
            StragglerReason::QueueFull => f.write_str("cannot be sent a signal: RLIMIT_SIGPENDING is reached"),
            StragglerReason::Late { state: ThreadState::Running } => f.write_str("did not get a processor in time"),
            StragglerReason::Late { .. } => f.write_str("did not answer in time"),
            StragglerReason::Unknown => f.write_str("did not answer, and /proc does not say why"),
        }
    }
}

/// A thread that did not enter the signal handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Straggler {
    /// The thread.
    pub tid: Tid,
    /// The thread's name, if it could be read.
    pub name: Option<Name>,
    /// The reason, as far as `/proc` gave one during the wait.
    pub why: StragglerReason,
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {}", self.tid)?;
        if let Some(name) = self.name {
            write!(f, " \"{name}\"")?;
        }
        write!(f, " {}", self.why)
    }
}

/// The number of threads that are named. Stragglers are inspected while other threads are held, so there is room for a
/// few only.
const NAMED: usize = 8;

/// The threads that did not enter the signal handler. There is at least one.
#[derive(Clone, Copy, Debug)]
pub struct Stragglers {
    named: [Option<Straggler>; NAMED],
    /// The number of these threads, named or not.
    count: usize,
}

impl Stragglers {
    pub(crate) fn new() -> Stragglers {
        Stragglers { named: [None; NAMED], count: 0 }
    }

    /// Returns whether one more thread would be named.
    pub(crate) fn has_room(&self) -> bool {
        self.count < NAMED
    }

    pub(crate) fn push(&mut self, straggler: Straggler) {
        if let Some(place) = self.named.get_mut(self.count) {
            *place = Some(straggler);
        }
        self.count += 1;
    }

    /// Counts a thread without naming it.
    pub(crate) fn push_nameless(&mut self) {
        self.count += 1;
    }

    /// Returns the first eight.
    pub fn iter(&self) -> impl Iterator<Item = &Straggler> {
        self.named.iter().flatten()
    }

    /// Returns the number of threads, including those that are not named.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

impl fmt::Display for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (straggler, separator) in self.iter().zip(std::iter::once("").chain(std::iter::repeat("; "))) {
            write!(f, "{separator}{straggler}")?;
        }
        match self.count.saturating_sub(self.iter().count()) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
