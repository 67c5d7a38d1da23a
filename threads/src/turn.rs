//! The turn: one thread at a time asks or holds the others.
//!
//! The turn is taken before any signal is sent. A thread that waits for its turn sleeps in a system call, where the
//! signal interrupts it like any other thread: the waiting thread can be held.

use std::marker::PhantomData;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::system;
use crate::task::Tid;

/// The thread whose turn it is, 0 for none; the highest bit is set if a thread waits.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// Whether a thread that forks keeps the turn. Only the thread whose turn it is changes this.
static KEPT: AtomicBool = AtomicBool::new(false);
/// The number of turns that were taken.
static TURNS: AtomicU64 = AtomicU64::new(0);
/// Whether the thread whose turn it is waits for threads that only lack a processor.
static WAITS_FOR_PROCESSORS: AtomicBool = AtomicBool::new(false);
const ANOTHER_WAITS: u32 = 1 << 31;

/// How many times the limit of the call a hold may take if the threads that are missing only wait for a processor. Such a thread
/// enters the handler as soon as the scheduler runs the thread, which on a busy machine may take longer than the limit.
pub(crate) const LIMITS_ON_A_BUSY_MACHINE: u32 = 10;

/// The right to ask or hold the other threads. The turn belongs to the thread that took it.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Makes the type not `Send`.
    _thread: PhantomData<*mut ()>,
}

impl Turn {
    /// Waits for the turn; without a limit if `limit` is `None`.
    ///
    /// The limit is the time for which one thread may have the turn. If others have their turns one after the other, or if the thread
    /// whose turn it is waits for threads that only lack a processor, this function waits for up to
    /// [`LIMITS_ON_A_BUSY_MACHINE`] times the limit.
    pub(crate) fn take(limit: Option<Duration>) -> Result<Turn, Error> {
        let begin = Instant::now();
        let mut deadline = limit.and_then(|limit| begin.checked_add(limit));
        let mut turns = TURNS.load(Ordering::Relaxed);
        let me = Tid::current().get().cast_unsigned();
        // A thread that has waited does not know whether others still wait, and so sets the bit.
        let mut mine = me;
        loop {
            let owner = match OWNER.compare_exchange(0, mine, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    TURNS.fetch_add(1, Ordering::Relaxed);
                    return Ok(Turn { _thread: PhantomData });
                }
                Err(owner) => owner,
            };
            let holder = owner & !ANOTHER_WAITS;
            if holder == me {
                return Err(Error::Nested);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if let Some(limit) = limit.filter(|_| left == Some(Duration::ZERO)) {
                let before = std::mem::replace(&mut turns, TURNS.load(Ordering::Relaxed));
                let goes_on = turns != before || WAITS_FOR_PROCESSORS.load(Ordering::Relaxed);
                if !goes_on || begin.elapsed() >= limit.saturating_mul(LIMITS_ON_A_BUSY_MACHINE) {
                    return Err(Error::Busy { holder: Tid::new(holder.cast_signed()), limit });
                }
                deadline = Instant::now().checked_add(limit);
                continue;
            }
            let waited_for = owner | ANOTHER_WAITS;
            if owner == waited_for
                || OWNER.compare_exchange(owner, waited_for, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                system::wait(OWNER.as_ptr(), waited_for, left);
                mine = me | ANOTHER_WAITS;
            }
        }
    }

    /// Records that this thread waits for threads that only lack a processor.
    pub(crate) fn waits_for_processors(&self) {
        WAITS_FOR_PROCESSORS.store(true, Ordering::Relaxed);
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
        WAITS_FOR_PROCESSORS.store(false, Ordering::Relaxed);
        if OWNER.swap(0, Ordering::Release) & ANOTHER_WAITS != 0 {
            system::wake(OWNER.as_ptr(), 1);
        }
    }
}
