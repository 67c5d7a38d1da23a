//! What can go wrong: which thread could not be had, and why.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::signal::Disposition;
use crate::task::{Name, State, Tid};

/// Threads could not be asked or held. Whatever it is, nobody is held any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The signal asked for is not one of those that programs may use freely.
    #[error("signal {signal} is not a real-time signal: those of this process are {first} to {last}")]
    NotRealTime {
        /// The signal asked for.
        signal: i32,
        /// The first that there is.
        first: i32,
        /// The last that there is.
        last: i32,
    },
    /// The signal asked for has a handler, or is ignored.
    #[error("signal {signal} is in use by somebody else: it is {disposition}")]
    Taken {
        /// The signal asked for.
        signal: i32,
        /// What happens on it.
        disposition: Disposition,
    },
    /// The signal was chosen before, by another call or by the first use.
    #[error("signal {chosen} is in use already, so signal {signal} cannot be")]
    Chosen {
        /// The signal asked for.
        signal: i32,
        /// The signal in use.
        chosen: i32,
    },
    /// No real-time signal is free.
    #[error("each real-time signal from {first} to {last} has a handler or is ignored")]
    NoneFree {
        /// The first that there is.
        first: i32,
        /// The last that there is.
        last: i32,
    },
    /// Somebody has installed another handler for our signal since.
    #[error("somebody else has taken signal {signal}, which modload holds threads with: it is {disposition}")]
    Replaced {
        /// Our signal.
        signal: i32,
        /// What happens on it now.
        disposition: Disposition,
    },
    /// The handler could not be installed or looked at.
    #[error("sigaction(2) of signal {signal}")]
    Action {
        /// The signal.
        signal: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The list of threads could not be read.
    #[error("reading /proc/self/task, the list of this process's threads")]
    List {
        /// What the kernel said.
        source: io::Error,
    },
    /// The list of threads is that of another name space: the calling thread is not in it.
    #[error("/proc belongs to another PID name space: it does not list thread {tid}, which reads it")]
    ForeignList {
        /// The thread that reads.
        tid: Tid,
    },
    /// The calling thread holds the others already.
    #[error("this thread holds all others already")]
    Nested,
    /// Another thread had its turn, and took too long.
    #[error("thread {holder} was still holding or asking the others after {limit:?}")]
    Busy {
        /// Whose turn it was at the end.
        holder: Tid,
        /// How long was waited.
        limit: Duration,
    },
    /// Threads did not answer.
    #[error("not reached within {limit:?}: {stragglers}")]
    NotReached {
        /// Who they are.
        stragglers: Box<Stragglers>,
        /// How long was waited.
        limit: Duration,
    },
    /// A thread that cannot be asked was looked at where it slept, and ran before the look was over, each time.
    #[error("thread {tid} \"{}\" cannot be asked, and ran during each look at it within {limit:?}", shown(*name))]
    Awake {
        /// The thread.
        tid: Tid,
        /// Its name, if it could be read.
        name: Option<Name>,
        /// For how long it was looked at.
        limit: Duration,
    },
    /// Threads start and end faster than they can be counted.
    #[error("within {limit:?} it could not be made sure that all of {counted} threads are known; {known} are")]
    Restless {
        /// Threads that we know.
        known: u64,
        /// Threads that the kernel counts.
        counted: u64,
        /// How long was tried.
        limit: Duration,
    },
}

fn shown(name: Option<Name>) -> String {
    name.map(|name| name.to_string()).unwrap_or_default()
}

/// Why a thread did not come to our handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Why {
    /// It blocks our signal.
    Blocks {
        /// The signal.
        signal: i32,
    },
    /// It waits for our signal, by sigwait(3) say, and would take it for another's.
    Waits {
        /// The signal.
        signal: i32,
    },
    /// A tracer has stopped it.
    Traced {
        /// The tracer's process.
        by: i32,
    },
    /// Job control has stopped it.
    Stopped,
    /// It waits in the kernel for what no signal interrupts.
    Uninterruptible,
    /// The kernel has no room for another queued signal: RLIMIT_SIGPENDING.
    QueueFull,
    /// It would come, but did not in time.
    Late {
        /// What it was doing.
        state: State,
    },
    /// `/proc` did not say.
    Unknown,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Blocks { signal } => write!(f, "blocks signal {signal}"),
            Why::Waits { signal } => write!(f, "waits for signal {signal} by rt_sigtimedwait"),
            Why::Traced { by } => write!(f, "is stopped by its tracer, process {by}"),
            Why::Stopped => f.write_str("is stopped by job control"),
            Why::Uninterruptible => f.write_str("waits in the kernel uninterruptibly, in vfork say"),
            Why::QueueFull => f.write_str("cannot be sent a signal: RLIMIT_SIGPENDING is reached"),
            Why::Late { state: State::Running } => f.write_str("did not get a processor in time"),
            Why::Late { .. } => f.write_str("did not answer in time"),
            Why::Unknown => f.write_str("did not answer, and /proc does not say why"),
        }
    }
}

/// A thread that did not come to our handler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Straggler {
    /// The thread.
    pub tid: Tid,
    /// Its name, if it could be read.
    pub name: Option<Name>,
    /// Why it did not come, as far as `/proc` said so while it was waited for.
    pub why: Why,
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

/// How many are named. They are looked at while others are held, so there is room for a few.
const NAMED: usize = 8;

/// The threads that did not come. There is at least one.
#[derive(Clone, Copy, Debug)]
pub struct Stragglers {
    named: [Option<Straggler>; NAMED],
    /// How many there are, named or not.
    count: usize,
}

impl Stragglers {
    pub(crate) fn new() -> Stragglers {
        Stragglers { named: [None; NAMED], count: 0 }
    }

    /// Whether another one would be named.
    pub(crate) fn has_room(&self) -> bool {
        self.count < NAMED
    }

    pub(crate) fn push(&mut self, straggler: Straggler) {
        if let Some(place) = self.named.get_mut(self.count) {
            *place = Some(straggler);
        }
        self.count += 1;
    }

    /// One that is counted and not named.
    pub(crate) fn push_nameless(&mut self) {
        self.count += 1;
    }

    /// The first eight.
    pub fn iter(&self) -> impl Iterator<Item = &Straggler> {
        self.named.iter().flatten()
    }

    /// How many there are, those among them that are not named.
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
