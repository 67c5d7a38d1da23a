//! The words of threads (`modload_threads::word`), as transitions that hold threads use them: values, and changes.

use std::sync::atomic::{AtomicU64, Ordering};

use modload_threads::word::own;
use modload_threads::{DEFAULT_LIMIT, Error, Held, hold};

/// The limit of the count of a thread's checks, in the lowest bits of the low half of the thread's word. The other bits
/// of the low half tell transitions apart: a thread that has checked its own stack in one transition must not count as
/// migrated in the next.
pub(super) const TRIES: u64 = 1 << 8;

/// Returns whether a word says that its thread has migrated, in transitions that hold threads.
pub(super) fn is_migrated(word: u64) -> bool {
    word & u64::from(u32::MAX) == 0
}

/// Returns the word for threads that have not migrated to a new transition and were not checked yet.
pub(super) fn new_unmigrated_word() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    u64::from(u32::MAX) & (NUMBER.fetch_add(1, Ordering::Relaxed) * TRIES) | 1
}

/// Replaces this thread's word if it still equals `before`. Fails if a signal handler, or the thread that holds this
/// one, changed it.
pub(super) fn replace_own_word(before: u64, word: u64) {
    let _written = own().compare_exchange(before, word, Ordering::Relaxed, Ordering::Relaxed);
}

/// Clears the words of all threads: no thread takes part in a transition.
pub(super) fn clear_words() -> Result<(), Error> {
    let held = hold(DEFAULT_LIMIT)?;
    held.words().map(|(_, word)| word).chain(std::iter::once(own())).for_each(|word| word.store(0, Ordering::Relaxed));
    Ok(())
}

/// Exchanges the words of threads that have migrated and of threads that have not. `unmigrated` is the word for threads
/// that have not.
pub(super) fn exchange_words(held: &Held, unmigrated: u64) {
    for word in held.words().map(|(_, word)| word).chain(std::iter::once(own())) {
        let had_migrated = is_migrated(word.load(Ordering::Relaxed));
        word.store(if had_migrated { unmigrated } else { 0 }, Ordering::Relaxed);
    }
}
