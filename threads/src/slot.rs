//! The data that the asking thread and a signal handler share: a slot for each thread that is asked.
//!
//! A slot is never freed and never moves, because a signal that was sent to a thread may arrive at any later time. A
//! slot passes through these phases, each with the number of the round in which the slot entered it:
//!
//! | phase | meaning | next phases |
//! |---|---|---|
//! | FREE | no thread uses the slot | the asker, in a round: ASKED, UNASKED |
//! | ASKED | a signal is pending for the thread `tid` | its handler: CLAIMED; the asker, on giving up: ABSENT, OWED, FREE |
//! | CLAIMED | the thread is in the handler and uses the slot | its handler: HERE |
//! | HERE | the handler uses the slot no more; the thread waits in the handler, or has answered | the next round: as FREE |
//! | ABSENT | the thread is listed but never arrives | the asker, at the end of the round: OWED |
//! | OWED | the round has given up on the thread, a signal is still pending | its handler: FREE; the asker: ASKED, ABSENT, FREE |
//! | UNASKED | the thread blocks or awaits the signal | the asker: ASKED, ABSENT, ASLEEP, FREE; the next round: as FREE |
//! | ASLEEP | the thread is sent no signal; the slot holds its sleeping place | the asker: UNASKED; the next round: as FREE |
//!
//! An OWED slot keeps signals from accumulating: a thread that blocks the signal has at most one pending, however often
//! the thread is asked. When that thread enters the handler late, the handler finds that the round is over.

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::round::Work;
use crate::sleeper::{self, Sleeper};
use crate::word::ThreadWords;

/// A phase of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Free,
    Asked,
    Claimed,
    Here,
    Absent,
    Owed,
    Unasked,
    Asleep,
}

impl Phase {
    /// All phases, in the order of their numbers.
    const ALL: [Phase; 8] = [
        Phase::Free,
        Phase::Asked,
        Phase::Claimed,
        Phase::Here,
        Phase::Absent,
        Phase::Owed,
        Phase::Unasked,
        Phase::Asleep,
    ];

    fn number(self) -> u64 {
        match self {
            Phase::Free => 0,
            Phase::Asked => 1,
            Phase::Claimed => 2,
            Phase::Here => 3,
            Phase::Absent => 4,
            Phase::Owed => 5,
            Phase::Unasked => 6,
            Phase::Asleep => 7,
        }
    }
}

/// A slot. Slots take whole cache lines, at least two, so that threads that answer at the same time do not wait for
/// each other.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slot {
    /// The round in the upper half, the phase in the lower half.
    state: AtomicU64,
    /// The thread that is or was asked. Changes only in phase Free, or in phase Here, Unasked or Asleep of an earlier round.
    tid: AtomicI32,
    /// The work that the thread has to do; null if the thread has to wait. Written before Asked, and read after
    /// Claimed.
    pub(crate) work: AtomicPtr<Work>,
    /// The signal frame on the thread's stack. Written before Here; valid while the thread waits.
    pub(crate) context: AtomicPtr<libc::ucontext_t>,
    /// The thread's own words ([`crate::word`]). Written and valid like the frame.
    pub(crate) words: AtomicPtr<ThreadWords>,
    /// The time in nanoseconds that the thread had run at the first look of a round for which it is shy; 0 before. Used by the asker
    /// alone.
    pub(crate) ran: AtomicU64,
    /// The place where the thread sleeps, in phase Asleep. Used by the asker alone.
    sleeper: [AtomicU64; sleeper::WORDS],
}

/// A slot's state, unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct At {
    pub(crate) round: u32,
    pub(crate) phase: Phase,
}

impl At {
    /// Returns another phase of the same round.
    pub(crate) fn to(self, phase: Phase) -> At {
        At { phase, ..self }
    }

    fn pack(self) -> u64 {
        u64::from(self.round) << 32 | self.phase.number()
    }

    fn unpack(state: u64) -> At {
        let [a, b, c, d, .., number] = state.to_be_bytes();
        // No code writes a number other than those of `number`.
        let phase = Phase::ALL.get(usize::from(number)).copied().unwrap_or(Phase::Free);
        At { round: u32::from_be_bytes([a, b, c, d]), phase }
    }
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            state: AtomicU64::new(0),
            tid: AtomicI32::new(0),
            work: AtomicPtr::new(ptr::null_mut()),
            context: AtomicPtr::new(ptr::null_mut()),
            words: AtomicPtr::new(ptr::null_mut()),
            ran: AtomicU64::new(0),
            sleeper: [const { AtomicU64::new(0) }; sleeper::WORDS],
        }
    }

    /// Returns the place where the thread sleeps, as it was last [stored](Slot::set_sleeper).
    pub(crate) fn sleeper(&self) -> Sleeper {
        Sleeper::unpack(self.sleeper.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    pub(crate) fn set_sleeper(&self, sleeper: &Sleeper) {
        for (word, value) in self.sleeper.iter().zip(sleeper.pack()) {
            word.store(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn tid(&self) -> i32 {
        self.tid.load(Ordering::Relaxed)
    }

    pub(crate) fn at(&self) -> At {
        At::unpack(self.state.load(Ordering::Acquire))
    }

    /// Changes the state from `from` to `to`. Returns `false` if another thread has changed the state before.
    pub(crate) fn go(&self, from: At, to: At) -> bool {
        self.state.compare_exchange(from.pack(), to.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Sets the state, from one that only the caller can leave.
    pub(crate) fn put(&self, at: At) {
        self.state.store(at.pack(), Ordering::Release);
    }

    /// Returns whether the asker may give the slot to a thread in this round.
    fn is_free(&self, round: u32) -> bool {
        let at = self.at();
        let left_behind = matches!(at.phase, Phase::Here | Phase::Unasked | Phase::Asleep);
        at.phase == Phase::Free || left_behind && at.round != round
    }

    /// Gives a free slot to a thread. The thread does not know of the slot yet. Returns `false` if the slot is not
    /// free.
    pub(crate) fn give(&self, round: u32, tid: i32) -> bool {
        let free = self.is_free(round);
        if free {
            self.tid.store(tid, Ordering::Relaxed);
        }
        free
    }
}

/// A table of 64 << N slots for each N, made when it is needed and never freed.
static TABLES: [AtomicPtr<Slot>; TABLE_COUNT] = [const { AtomicPtr::new(ptr::null_mut()) }; TABLE_COUNT];
/// The number of tables: their slots are more than the threads that the kernel can number, 2^22.
const TABLE_COUNT: usize = 17;
const FIRST: u32 = 64;

/// The number of slots, in tables from the first one on.
static CAPACITY: AtomicU32 = AtomicU32::new(0);

/// Returns the number of slots.
pub(crate) fn capacity() -> u32 {
    CAPACITY.load(Ordering::Acquire)
}

/// Makes sure that there are at least `count` slots, up to the number that the kernel could need. Allocates memory. The
/// caller must have its turn.
pub(crate) fn reserve(count: u64) {
    for (at, table) in TABLES.iter().enumerate() {
        if u64::from(capacity()) >= count {
            return;
        }
        let slots = FIRST << at;
        if table.load(Ordering::Relaxed).is_null() {
            let made: Vec<Slot> = (0..slots).map(|_| Slot::new()).collect();
            table.store(made.leak().as_mut_ptr(), Ordering::Release);
            CAPACITY.fetch_add(slots, Ordering::Release);
        }
    }
}

/// Returns the slot of this number, if there is one. Async-signal-safe.
pub(crate) fn get(number: u32) -> Option<&'static Slot> {
    // Table N begins at FIRST * (2^N - 1).
    let table = (number / FIRST).checked_add(1)?.ilog2();
    let begins = FIRST * ((1_u32 << table) - 1);
    let slots = TABLES.get(usize::try_from(table).ok()?)?.load(Ordering::Acquire);
    if slots.is_null() {
        return None;
    }
    let offset = usize::try_from(number - begins).ok()?;
    // SAFETY: table N has FIRST << N slots, and `number` lies before the next table's beginning.
    let slot = unsafe { slots.add(offset) };
    // SAFETY: tables consist of whole slots, are never freed, and no code borrows a slot mutably.
    Some(unsafe { &*slot })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_taken_apart_as_it_was_put_together() {
        for (number, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase.number(), u64::try_from(number).unwrap());
            for round in [0, 1, u32::MAX] {
                let at = At { round, phase };
                assert_eq!(At::unpack(at.pack()), at);
            }
        }
    }

    #[test]
    fn each_number_has_a_slot_of_its_own() {
        reserve(1000);
        assert_eq!(capacity(), 64 + 128 + 256 + 512 + 1024);
        let mut addresses: Vec<_> = (0..capacity()).map(|number| ptr::from_ref(get(number).unwrap()).addr()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 1984);
        assert!(get(capacity()).is_none() && get(u32::MAX).is_none());
    }
}
