//! The turn: one thread at a time asks or holds the others.
//!
//! The turn is taken before any signal is sent. A thread that waits for its turn sleeps in a system call, where the
//! signal interrupts it like any other thread: the waiting thread can be held.

use std::marker::PhantomData;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::system;
use crate::task::Tid;

/// The thread whose turn it is, 0 for none; the highest bit is set if a thread waits.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// Whether a thread that forks keeps the turn. Only the thread whose turn it is changes this.
static KEPT: AtomicBool = AtomicBool::new(false);
const SOMEBODY_WAITS: u32 = 1 << 31;

/// The right to ask or hold the other threads. The turn belongs to the thread that took it.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Makes the type not `Send`.
    _thread: PhantomData<*mut ()>,
}

impl Turn {
    /// Waits for the turn; without a limit if `limit` is `None`.
    pub(crate) fn take(limit: Option<Duration>) -> Result<Turn, Error> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let me = Tid::current().get().cast_unsigned();
        // A thread that has waited does not know whether others still wait, and so sets the bit.
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

    /// Returns the turn that was kept, if one was. In the child of a fork, the thread has another id and no thread
    /// waits.
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
