//! The threads that have not migrated, and the reasons.

use modload_threads::Tid;
use modload_threads::frames::WalkError;

/// The reason for which a thread has not migrated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockReason {
    /// A function that changes is on the thread's stack, or was at its last checkpoint. The value is the address in
    /// that frame.
    Inside(u64),
    /// The thread's stack cannot be walked to its end.
    Unknown(WalkError),
    /// The thread has not reached a checkpoint, and threads migrate only there.
    NoCheckpoint,
    /// The thread's stack could not be walked to its end at its last checkpoint.
    Unwalked,
}

/// A thread that has not migrated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocked {
    /// The thread.
    pub tid: Tid,
    /// The reason.
    pub why: BlockReason,
}
