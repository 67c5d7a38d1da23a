//! The words of threads (`modload_threads::word`): layout, meaning and changes.
//!
//! A word is 64 bits in a thread's own memory, 0 when the thread starts. The stub of a transition reads the word with one
//! instruction. A transition that holds threads and a checkpoint-only transition read different bits, so a word of one kind says
//! nothing in a transition of the other kind:
//!
//! | bits | in a transition that holds threads | in a checkpoint-only transition |
//! |---|---|---|
//! | 0 to 7 | how often the thread was checked, from 1 on; 0 once the thread has migrated | 0 |
//! | 8 to 31 | the number of the transition, modulo 2^24; 0 once the thread has migrated | 0 |
//! | 32 | part of the count below | 1 if the thread runs the new code |
//! | 32 to 63 | the number of calls until the next check, at most [`MOST_CALLS`] | [`FIRST_TAG`] and twice the transition's number |

use std::sync::atomic::{AtomicU64, Ordering};

use modload_threads::word::own;
use modload_threads::{DEFAULT_LIMIT, Error, Held, hold};

/// The code that a thread runs, as of the start of the transition. A reversal does not exchange the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CodeVersion {
    /// The code before the transition.
    Old,
    /// The new code of the transition.
    New,
}

impl CodeVersion {
    pub(super) fn other(self) -> CodeVersion {
        if self == CodeVersion::Old { CodeVersion::New } else { CodeVersion::Old }
    }
}

/// A word of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ThreadWord(u64);

/// The meaning of a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WordMeaning {
    /// The thread has migrated in a transition that holds threads, or was in no transition.
    Migrated,
    /// The thread has not migrated in a transition that holds threads.
    Unmigrated {
        /// The number of the transition, modulo 2^24. A thread that has checked its own stack in one transition must not count as
        /// migrated in the next.
        transition: u64,
        /// How often the thread was checked.
        checks: u64,
        /// How often the thread may enter stubs before the next check.
        calls: u64,
    },
    /// The thread runs this code in a checkpoint-only transition.
    Runs {
        /// The number of the transition.
        transition: u64,
        /// The code.
        version: CodeVersion,
    },
}

const HALF: u32 = 32;
const CHECK_BITS: u32 = 8;
/// The logarithm to base 2 of the most calls between two checks.
const MOST_CHECKS: u64 = 16;
/// The most calls between two checks.
const MOST_CALLS: u64 = 1 << MOST_CHECKS;
/// The high half of the tag of transition 0. All tags are above every count of calls.
const FIRST_TAG: u64 = MOST_CALLS << 1;

impl ThreadWord {
    /// The word of a thread that has migrated in a transition that holds threads, and of a new thread.
    pub(super) const MIGRATED: ThreadWord = ThreadWord(0);

    /// The number of checkpoint-only transitions that a process can have.
    pub(super) const MOST_TAGS: u64 = (1 << (HALF - 1)) - FIRST_TAG;

    /// Returns the word for threads that have not migrated to a new transition that holds threads.
    pub(super) fn of_new_transition() -> ThreadWord {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        ThreadWord::unmigrated(NUMBER.fetch_add(1, Ordering::Relaxed), 1, 0)
    }

    fn unmigrated(transition: u64, checks: u64, calls: u64) -> ThreadWord {
        ThreadWord((calls << HALF) | ((transition << CHECK_BITS) & u64::from(u32::MAX)) | checks)
    }

    /// Returns the word of a thread that runs this code in a checkpoint-only transition. The words of a transition are greater than
    /// those of the transitions before.
    pub(super) fn runs(transition: u64, version: CodeVersion) -> ThreadWord {
        ThreadWord((FIRST_TAG + 2 * transition + u64::from(version == CodeVersion::New)) << HALF)
    }

    /// Returns the word for a thread that was checked once more and cannot migrate yet. With each check the thread enters more stubs
    /// before the next one. A word of another meaning stays.
    pub(super) fn checked_once_more(self) -> ThreadWord {
        let WordMeaning::Unmigrated { transition, checks, .. } = self.meaning() else { return self };
        let checks = (checks + 1).min(MOST_CHECKS);
        ThreadWord::unmigrated(transition, checks, 1 << checks)
    }

    /// Returns the meaning.
    pub(super) fn meaning(self) -> WordMeaning {
        let (high, low) = (self.0 >> HALF, self.0 & u64::from(u32::MAX));
        if low != 0 {
            let (transition, checks) = (low >> CHECK_BITS, low % (1 << CHECK_BITS));
            WordMeaning::Unmigrated { transition, checks, calls: high }
        } else if let Some(tag) = high.checked_sub(FIRST_TAG) {
            let version = if tag % 2 == 1 { CodeVersion::New } else { CodeVersion::Old };
            WordMeaning::Runs { transition: tag / 2, version }
        } else {
            WordMeaning::Migrated
        }
    }

    /// Returns whether the thread counts as migrated in a transition that holds threads.
    pub(super) fn is_migrated(self) -> bool {
        !matches!(self.meaning(), WordMeaning::Unmigrated { .. })
    }

    /// Returns whether the word says nothing in a checkpoint-only transition, because it is older.
    pub(super) fn is_older_than(self, transition: u64) -> bool {
        self.0 < ThreadWord::runs(transition, CodeVersion::Old).0
    }

    /// Returns the bits, for the code of stubs.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// Returns the word that a thread has.
    pub(super) fn load(place: &AtomicU64) -> ThreadWord {
        ThreadWord(place.load(Ordering::Relaxed))
    }

    /// Gives the word to a thread that is held, or to the calling thread.
    pub(super) fn store(self, place: &AtomicU64) {
        place.store(self.0, Ordering::Relaxed);
    }

    /// Returns the word of the calling thread.
    pub(super) fn of_this_thread() -> ThreadWord {
        ThreadWord::load(own())
    }

    /// Replaces this thread's word by `new` if this thread still has `self`. Has no effect if a signal handler, or the thread that
    /// holds this thread, has changed the word.
    pub(super) fn replace_own(self, new: ThreadWord) {
        let _replaced = own().compare_exchange(self.0, new.0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for ThreadWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.meaning().fmt(f)
    }
}

/// Clears the words of all threads: no thread takes part in a transition.
pub(super) fn clear_words() -> Result<(), Error> {
    let held = hold(DEFAULT_LIMIT)?;
    let words = held.words().map(|(_, word)| word);
    words.chain(std::iter::once(own())).for_each(|word| ThreadWord::MIGRATED.store(word));
    Ok(())
}

/// Exchanges the words of threads that have migrated and of threads that have not. `unmigrated` is the word for threads
/// that have not.
pub(super) fn exchange_words(held: &Held, unmigrated: ThreadWord) {
    for word in held.words().map(|(_, word)| word).chain(std::iter::once(own())) {
        let had_migrated = ThreadWord::load(word).is_migrated();
        if had_migrated { unmigrated } else { ThreadWord::MIGRATED }.store(word);
    }
}

#[cfg(test)]
mod tests {
    use super::{CodeVersion, FIRST_TAG, MOST_CALLS, ThreadWord, WordMeaning};

    #[test]
    fn a_word_means_what_it_was_made_for() {
        assert_eq!(ThreadWord::MIGRATED.meaning(), WordMeaning::Migrated);
        for transition in [0, 1, (1 << 24) - 1] {
            let first = ThreadWord::unmigrated(transition, 1, 0);
            assert_eq!(first.meaning(), WordMeaning::Unmigrated { transition, checks: 1, calls: 0 });
            assert!(!first.is_migrated());
        }
        for transition in [0, 1, ThreadWord::MOST_TAGS - 1] {
            for version in [CodeVersion::Old, CodeVersion::New] {
                let word = ThreadWord::runs(transition, version);
                assert_eq!(word.meaning(), WordMeaning::Runs { transition, version });
                assert!(word.is_migrated(), "the word says nothing in a transition that holds threads");
            }
        }
    }

    #[test]
    fn transitions_beyond_the_bits_of_their_number_begin_again() {
        assert_eq!(ThreadWord::unmigrated(1 << 24, 1, 0), ThreadWord::unmigrated(0, 1, 0));
    }

    #[test]
    fn each_check_doubles_the_calls_up_to_a_bound() {
        let mut word = ThreadWord::unmigrated(7, 1, 0);
        let mut calls = Vec::new();
        for _ in 0..20 {
            word = word.checked_once_more();
            let WordMeaning::Unmigrated { transition: 7, calls: more, .. } = word.meaning() else { panic!("{word:?}") };
            calls.push(more);
        }
        assert_eq!(calls[..3], [4, 8, 16]);
        assert_eq!(calls.last(), Some(&MOST_CALLS));
        assert_eq!(ThreadWord::MIGRATED.checked_once_more(), ThreadWord::MIGRATED);
    }

    #[test]
    fn words_of_earlier_transitions_are_older() {
        let new = ThreadWord::runs(4, CodeVersion::New);
        assert!(new.is_older_than(5) && !new.is_older_than(4));
        assert!(ThreadWord::MIGRATED.is_older_than(0));
        // The counts of calls in transitions that hold threads are less than every tag.
        assert!(ThreadWord::unmigrated((1 << 24) - 1, 16, MOST_CALLS).is_older_than(0));
        const { assert!(MOST_CALLS < FIRST_TAG) };
    }
}
