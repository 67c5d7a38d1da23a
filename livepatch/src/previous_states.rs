//! The answers of `klp_get_prev_state` to a callback: the states of the patches that existed before the patch in
//! transition.
//!
//! Callbacks run in the thread that holds the table's lock, so callbacks cannot ask the table. That thread gives the
//! states to the callbacks.

use std::cell::RefCell;

use modload_edit::Addr;

thread_local! {
    static STATES: RefCell<Option<Vec<(u64, Addr)>>> = const { RefCell::new(None) };
}

/// The states for this thread's callbacks, by their numbers, the newest last. The states apply as long as this value
/// exists.
pub(crate) struct PreviousStates {
    before: Option<Vec<(u64, Addr)>>,
}

impl PreviousStates {
    pub(crate) fn provide(states: Vec<(u64, Addr)>) -> PreviousStates {
        PreviousStates { before: STATES.replace(Some(states)) }
    }
}

impl Drop for PreviousStates {
    fn drop(&mut self) {
        STATES.set(self.before.take());
    }
}

/// Returns the address of the newest state of this number.
pub(crate) fn newest(id: u64) -> Option<Addr> {
    STATES.with_borrow(|states| {
        if states.is_none() {
            tracing::warn!(id, "klp_get_prev_state was called outside of a transition's callbacks");
        }
        states.iter().flatten().rev().find(|(of, _)| *of == id).map(|(_, at)| *at)
    })
}
