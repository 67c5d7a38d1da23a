//! Whose turn it is: one thread at a time asks or holds the others.
//!
//! The turn is taken before any signal is sent. Who waits for it sleeps in a system call, where our signal finds it as
//! it finds anybody: it can be held.

use std::marker::PhantomData;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::system;
use crate::task::Tid;

/// The thread whose turn it is, 0 for none; the highest bit is set if somebody waits.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// Whether it is kept by a thread that forks. Changed only in one's turn.
static KEPT: AtomicBool = AtomicBool::new(false);
const SOMEBODY_WAITS: u32 = 1 << 31;

/// The right to ask or hold the other threads. It belongs to the thread that took it.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Not `Send`.
    _thread: PhantomData<*mut ()>,
}

impl Turn {
    /// Waits for the turn; `None` waits for as long as it takes.
    pub(crate) fn take(limit: Option<Duration>) -> Result<Turn, Error> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let me = Tid::current().get().cast_unsigned();
        // Who has waited does not know whether others still do, and says that they may.
        let mut mine = me;
        loop {
            let owner = match OWNER.compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(Turn { _thread: PhantomData }),
                Err(owner) => owner,
            };
            let holder = owner & !SOMEBODY_WAITS;
            if holder == me {
                return Err(Error::Nested);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Error::Busy { holder: Tid::new(holder.cast_signed()), limit: limit.unwrap_or_default() });
            }
            let waited_for = owner | SOMEBODY_WAITS;
            if owner == waited_for
                || OWNER.compare_exchange(owner, waited_for, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                system::wait(OWNER.as_ptr(), waited_for, left);
                mine = me | SOMEBODY_WAITS;
            }
        }
    }

    /// Keeps the turn over a fork.
    pub(crate) fn keep(self) {
        KEPT.store(true, Ordering::Relaxed);
        mem::forget(self);
    }

    /// The turn that was kept, if one was. In the child of a fork the thread has another id and nobody waits.
    pub(crate) fn kept() -> Option<Turn> {
        KEPT.swap(false, Ordering::Relaxed).then(|| Turn { _thread: PhantomData })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if OWNER.swap(0, Ordering::Release) & SOMEBODY_WAITS != 0 {
            system::wake(OWNER.as_ptr(), 1);
        }
    }
}
