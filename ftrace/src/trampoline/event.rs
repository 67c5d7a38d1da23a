//! Code that reports an event in the current thread, between any two of the thread's instructions, and then continues
//! the thread: for the stubs of live patching.

use std::sync::OnceLock;

/// The data that `r11` points to when [`crate::event_code`] is jumped to. The data lives for ever.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct StubEvent {
    /// The thread's place for stack walks: an address behind a call, in the function that the thread is in.
    pub home: u64,
    /// The address at which the thread continues.
    pub then: u64,
}

/// The value of `rax` that marks an event. No return address is stored at this address.
pub(super) const EVENT_SLOT: u64 = u64::MAX;

static HOOK: OnceLock<fn()> = OnceLock::new();

/// Sets the function that is called for each event, in the thread of the event. The function must be async-signal-safe.
/// Only the first call of `on_event` has an effect.
pub fn on_event(hook: fn()) {
    HOOK.get_or_init(|| hook);
}

pub(super) fn call_hook() {
    if let Some(hook) = HOOK.get() {
        hook();
    }
}
