//! The transition under way, as one value that threads read without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use super::word::{CodeVersion, ThreadWord};

/// The transition under way, for threads to read: [`NOTHING`], [`HOLDING`], or a [`RosterPhase`].
pub(super) static UNDER_WAY: AtomicU64 = AtomicU64::new(NOTHING);
/// No transition.
pub(super) const NOTHING: u64 = 0;
/// A transition that holds threads and checks them anywhere.
const HOLDING: u64 = 1;
/// The number of the last checkpoint-only transition.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Announces a transition that holds threads and checks them anywhere.
pub(super) fn announce_holding() {
    UNDER_WAY.store(HOLDING, Ordering::Release);
}

/// Announces that no transition is under way.
pub(super) fn announce_end() {
    UNDER_WAY.store(NOTHING, Ordering::Release);
}

/// The number of bits of a phase below the number of its transition.
const NUMBER_SHIFT: u32 = 24;
/// The number of bits below the count of reversals. The count wraps after four million reversals, which matters only to
/// a thread that stays between two instructions for so long.
pub(super) const STATE_BITS: u32 = 2;
const REVERSALS_LIMIT: u64 = 1 << (NUMBER_SHIFT - STATE_BITS);
const LISTED: u64 = 2;
const TO_NEW: u64 = 1;

/// The state of a checkpoint-only transition, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RosterPhase {
    number: u64,
    reversals: u64,
    /// Whether the roster is available. Until then, a thread that is not on the roster runs the old code.
    pub(super) is_listed: bool,
    /// The code that threads migrate to.
    pub(super) to: CodeVersion,
}

impl RosterPhase {
    /// Returns the phase of the transition under way, if it is checkpoint-only.
    pub(super) fn under_way() -> Option<RosterPhase> {
        let bits = UNDER_WAY.load(Ordering::Acquire);
        (bits >> NUMBER_SHIFT != 0).then_some(RosterPhase {
            number: bits >> NUMBER_SHIFT,
            reversals: (bits >> STATE_BITS) % REVERSALS_LIMIT,
            is_listed: bits & LISTED != 0,
            to: if bits & TO_NEW != 0 { CodeVersion::New } else { CodeVersion::Old },
        })
    }

    /// Shows the phase to threads.
    pub(super) fn publish(self) {
        let flags = if self.is_listed { LISTED } else { 0 } | if self.to == CodeVersion::New { TO_NEW } else { 0 };
        UNDER_WAY.store(self.bits() | flags, Ordering::Release);
    }

    /// Shows the phase to threads, without the roster.
    pub(super) fn publish_unlisted(self) {
        RosterPhase { is_listed: false, ..self }.publish();
    }

    /// Returns the phase of a new transition: threads migrate to the new code. Returns `None` once transition numbers
    /// are used up. The caller holds the table's lock.
    pub(super) fn of_new_transition() -> Option<RosterPhase> {
        let number = LAST.load(Ordering::Relaxed) + 1;
        if number >= ThreadWord::MOST_TAGS {
            return None;
        }
        LAST.store(number, Ordering::Relaxed);
        Some(RosterPhase { number, reversals: 0, is_listed: true, to: CodeVersion::New })
    }

    /// Returns the phase after a reversal.
    pub(super) fn reversed(self) -> RosterPhase {
        RosterPhase { reversals: (self.reversals + 1) % REVERSALS_LIMIT, to: self.to.other(), ..self }
    }

    /// Returns the transition's number and the number of reversals, above [`STATE_BITS`] bits that are 0.
    pub(super) fn bits(self) -> u64 {
        self.number << NUMBER_SHIFT | self.reversals << STATE_BITS
    }

    /// Returns whether a value was made from the [`bits`](RosterPhase::bits) of a phase of the same transition.
    pub(super) fn is_same_transition(self, bits: u64) -> bool {
        bits >> NUMBER_SHIFT == self.number
    }

    /// Returns the word for a thread that runs this code.
    pub(super) fn word(self, version: CodeVersion) -> ThreadWord {
        ThreadWord::runs(self.number, version)
    }

    /// Returns whether a word is older than the transition, and so says nothing in it.
    pub(super) fn is_newer_than(self, word: ThreadWord) -> bool {
        word.is_older_than(self.number)
    }

    /// Returns the tag of the transition's stubs: the word of threads that run the old code.
    pub(super) fn tag(self) -> u64 {
        self.word(CodeVersion::Old).bits()
    }
}
