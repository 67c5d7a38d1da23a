//! What was recorded, as values: functions, threads, and what they did when. Names instead of addresses, so that it outlives
//! the modules that it tells of.
//!
//! A recording is told in [`Batch`]es: what is new since the one before. A thread's records are in the order in which it made
//! them; those of several threads are told apart by their times.

use serde::{Deserialize, Serialize};

/// What a recording has to tell since it was last asked.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Functions that records of this batch are the first to name. [`Record::function`] counts them from the start of the
    /// recording on.
    pub functions: Vec<Function>,
    /// Threads that records of this batch are the first to name. [`Record::thread`] counts them likewise.
    pub threads: Vec<Thread>,
    /// Of each thread in the order in which it made them; threads one after the other.
    pub records: Vec<Record>,
    /// What is not among the records, since the start of the recording.
    pub missed: Missed,
}

/// A function that was traced.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Function {
    /// Its module; `vmlinux` for the host's own.
    pub module: String,
    /// Its name, escaped.
    pub name: String,
}

/// A thread that was recorded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Thread {
    /// Its id, as gettid(2) gives it.
    pub tid: i32,
    /// Its name, escaped.
    pub name: String,
}

/// What a thread did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Which thread: its number in the recording.
    pub thread: u32,
    /// When, in nanoseconds since the recording began.
    pub at: u64,
    /// Which function: its number in the recording.
    pub function: u32,
    /// What it did with it.
    pub what: What,
}

/// What a thread did with a function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It called it, from this place (`func+0x12/0x40 [module]`, or an address). Recordings of calls have nothing else.
    Call {
        /// Where it returns to.
        parent: String,
    },
    /// It entered it. Of each record of this kind there is a [`What::Leave`] or a [`What::Unwound`] of the same thread, when
    /// the function ends; those of one thread are nested.
    Enter,
    /// It returned from it.
    Leave,
    /// It left it by an exception, by `longjmp`, or by ending.
    Unwound,
}

/// What a recording could not hold, counted since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Missed {
    /// Calls for which there was no room in the thread's buffer.
    pub dropped: u64,
    /// Calls from within the tracing itself: from a tracer, or from a signal handler that interrupted it.
    pub nested: u64,
    /// Calls that were deeper than the return stack.
    pub deep: u64,
    /// Calls on a stack that is not the thread's own: a coroutine's, or an alternate signal stack. Calls of a thread that has
    /// ended but for destructors of its data, and of one for which there is no memory, are among them.
    pub elsewhere: u64,
}

impl Missed {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        // They may have come from elsewhere.
        [self.dropped, self.nested, self.deep, self.elsewhere].into_iter().fold(0, u64::saturating_add)
    }
}
