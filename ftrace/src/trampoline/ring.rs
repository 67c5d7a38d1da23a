//! A thread's ring: the records that were not read yet.
//!
//! A unit has sixteen bytes: a time, a function's number, and the thread's action. A call has two units. The second
//! holds the call's origin. The thread writes units and then moves the head. The reader moves the tail. The thread
//! enters a function only if there is room for the function's return, too, and for the returns of all functions that
//! the thread is in. So the records in the ring are complete, and all others are counted.

/// The size of a unit in bytes.
pub(crate) const UNIT: u64 = 16;

/// The action of a thread: the high half of a unit's second word.
pub(crate) const ENTER: u32 = 0;
pub(crate) const LEAVE: u32 = 1;
pub(crate) const UNWOUND: u32 = 2;
pub(crate) const CALL: u32 = 3;

/// A unit.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Unit {
    pub(super) time: u64,
    pub(super) number: u32,
    pub(super) what: u32,
}

/// A record of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RingRecord {
    /// The processor's time stamp.
    pub(crate) time: u64,
    /// The function's number.
    pub(crate) number: u32,
    /// The action: [`ENTER`] and the others.
    pub(crate) what: u32,
    /// The origin of a call.
    pub(crate) parent: u64,
}
