//! A recording as values: functions, threads, and the threads' actions with their times. The values have names instead
//! of addresses, so a recording outlives the modules in it.
//!
//! A recording consists of [`Batch`]es: each has the records since the one before. A thread's records are in the order
//! in which the thread made them. The order between threads follows from the times.

use serde::{Deserialize, Serialize};

/// The part of a recording since the previous batch.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// The functions that records of this batch are the first to name. [`Record::function`] counts them from the start
    /// of the recording.
    pub functions: Vec<TracedFunction>,
    /// The threads that records of this batch are the first to name. [`Record::thread`] counts them likewise.
    pub threads: Vec<RecordedThread>,
    /// The records: one thread after the other, each thread's records in order.
    pub records: Vec<Record>,
    /// The calls that are not among the records, since the start of the recording.
    pub missed: Missed,
}

/// A function that was traced.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TracedFunction {
    /// The function's module, or `vmlinux` for the host's own functions.
    pub module: String,
    /// The function's name, escaped.
    pub name: String,
}

/// A thread that was recorded.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RecordedThread {
    /// The thread's id, as returned by gettid(2).
    pub tid: i32,
    /// The thread's name, escaped.
    pub name: String,
}

/// An action of a thread.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The thread, by its number in the recording.
    pub thread: u32,
    /// The time in nanoseconds since the start of the recording.
    pub at: u64,
    /// The function, by its number in the recording.
    pub function: u32,
    /// The action.
    pub what: ThreadAction,
}

/// The action of a thread with a function.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThreadAction {
    /// The thread called the function from this place (`func+0x12/0x40 [module]`, or an address). Recordings of calls
    /// have only this action.
    Call {
        /// The place to which the function returns.
        parent: String,
    },
    /// The thread entered the function. For each record of this kind there is a [`ThreadAction::Leave`] or a
    /// [`ThreadAction::Unwound`] of the same thread when the function ends. The records of one thread are nested.
    Enter,
    /// The thread returned from the function.
    Leave,
    /// The thread left the function by an exception, by `longjmp`, or by ending.
    Unwound,
}

/// The calls that a recording could not hold, counted since its start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Missed {
    /// Calls for which there was no room in the thread's buffer.
    pub dropped: u64,
    /// Calls from within the tracing itself: from a tracer, or from a signal handler that interrupted the tracing.
    pub nested: u64,
    /// Calls that were deeper than the return stack.
    pub deep: u64,
    /// Calls on a stack that is not the thread's own: a coroutine's, or an alternate signal stack. The number includes
    /// calls of an ending thread that only runs destructors of its data, and calls of a thread for which there is no
    /// memory.
    pub elsewhere: u64,
}

impl Missed {
    /// Returns the sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        // The counts may come from another source, so the sum may overflow.
        [self.dropped, self.nested, self.deep, self.elsewhere].into_iter().fold(0, u64::saturating_add)
    }
}
