//! The transition under way, as one word that threads read without a lock, and the words of threads in
//! checkpoint-only transitions.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// The code that a thread runs, as of the start of the transition. A reversal does not exchange the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CodeVersion {
    /// The code before the transition.
    Old,
    /// The new code of the transition.
    New,
}

impl CodeVersion {
    fn other(self) -> CodeVersion {
        if self == CodeVersion::Old { CodeVersion::New } else { CodeVersion::Old }
    }
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
        if number >= MOST {
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
    pub(super) fn word(self, version: CodeVersion) -> u64 {
        tag(self.number) + (u64::from(version == CodeVersion::New) << 32)
    }

    /// Returns the tag of the transition's stubs.
    pub(super) fn tag(self) -> u64 {
        self.word(CodeVersion::Old)
    }
}

/// The high half of the smallest tag. The tag is above every count that the stubs of transitions that hold threads keep
/// there. The low half of a tagged word is 0, so the word says nothing in such transitions.
const FIRST_TAG: u64 = 1 << 17;
/// The most checkpoint-only transitions in a process.
const MOST: u64 = (1 << 31) - FIRST_TAG;

/// Returns the tag of a transition. Tags grow, so words of earlier transitions are less than the words of a later one.
fn tag(number: u64) -> u64 {
    (FIRST_TAG + 2 * number) << 32
}
