//! What `klp_get_prev_state` tells a callback: the states of the patches that were there before the one in transition.
//!
//! Callbacks run in the thread that has the table, which they cannot ask: it is handed to them by that thread.

use std::cell::RefCell;

use modload_edit::Addr;

thread_local! {
    static STATES: RefCell<Option<Vec<(u64, Addr)>>> = const { RefCell::new(None) };
}

/// As long as this is there, this thread's callbacks have these states, by their numbers, the newest last.
pub(crate) struct Previous {
    before: Option<Vec<(u64, Addr)>>,
}

impl Previous {
    pub(crate) fn are(states: Vec<(u64, Addr)>) -> Previous {
        Previous { before: STATES.replace(Some(states)) }
    }
}

impl Drop for Previous {
    fn drop(&mut self) {
        STATES.set(self.before.take());
    }
}

/// Where the newest state of this number is.
pub(crate) fn newest(id: u64) -> Option<Addr> {
    STATES.with_borrow(|states| {
        if states.is_none() {
            tracing::warn!(id, "klp_get_prev_state is asked outside of a transition's callbacks");
        }
        states.iter().flatten().rev().find(|(of, _)| *of == id).map(|(_, at)| *at)
    })
}
