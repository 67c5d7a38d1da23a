//! A word in each thread's own memory, for code that stops threads. The word is zero when a thread begins. The thread
//! itself, probes that run in the thread, and the thread's holder read and write it.
//!
//! The word is static thread-local memory, so that generated code reaches it by one instruction: `%fs:` and [`offset`].
//! The word's user defines its meaning; the only user is live patching.

use std::sync::atomic::AtomicU64;

use crate::x86_64::{fs_offset, own_address};

/// The words of each thread, for the threads that hold it.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct ThreadWords {
    /// The word.
    pub(crate) word: AtomicU64,
    /// The number of the thread's creator: [`crate::creation`]; 0 if there is none.
    pub(crate) creator: AtomicU64,
}

/// Returns this thread's own word. Async-signal-safe.
#[must_use]
pub fn own() -> &'static AtomicU64 {
    &own_words().word
}

/// Returns this thread's own words. Async-signal-safe.
pub(crate) fn own_words() -> &'static ThreadWords {
    // SAFETY: sixteen aligned bytes of this thread's memory, which other threads access atomically and only while the
    // thread is held. The reference is valid until the thread ends; only the holder of the thread gets it, and no other
    // code that outlives the thread. The words of a sleeping thread are read through the kernel.
    unsafe { &*own_address().cast::<ThreadWords>() }
}

/// Returns the distance of the word from the address in `fs`, which is the same in every thread of this process.
///
/// The psABI puts static thread-local memory less than 2 GiB below the thread's control block.
#[must_use]
pub fn offset() -> i64 {
    fs_offset()
}

#[cfg(test)]
mod tests {
    use std::ptr;
    use std::sync::atomic::Ordering;
    use std::thread;

    use super::{offset, own};

    #[test]
    fn each_thread_begins_with_zero_and_has_its_own() {
        own().store(7, Ordering::Relaxed);
        let (other, address) =
            thread::spawn(|| (own().load(Ordering::Relaxed), ptr::from_ref(own()).addr())).join().unwrap();
        assert_eq!((other, own().load(Ordering::Relaxed)), (0, 7));
        assert_ne!(address, ptr::from_ref(own()).addr());
        own().store(0, Ordering::Relaxed);
        assert!(i32::try_from(offset()).is_ok_and(|offset| offset < 0));
    }
}
