//! The function that is called for the events of stubs.

use std::sync::OnceLock;

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
