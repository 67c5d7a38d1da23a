//! The data of an event that a stub of a live patch reports.

/// The data that `r11` points to when [`crate::event_code`] is jumped to. The data lives for ever.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StubEvent {
    /// The thread's place for stack walks: an address behind a call, in the function that the thread is in.
    pub home: u64,
    /// The address at which the thread continues.
    pub then: u64,
}
