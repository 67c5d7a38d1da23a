//! The lock of this crate. A thread that has it blocks all signals, so a signal handler of the same thread never waits
//! for it.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// A value that one thread at a time may use.
pub(crate) struct SpinLock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `lock` gives the value to one thread at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) const fn new(value: T) -> SpinLock<T> {
        SpinLock { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock. Signals are blocked until the result is dropped. Async-signal-safe.
    pub(crate) fn lock(&self) -> Locked<'_, T> {
        let signals = block_signals();
        while self.taken.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // The owner makes a few system calls at most, but may lack a processor.
            std::thread::yield_now();
        }
        Locked { lock: self, signals }
    }
}

/// The value of a [`SpinLock`]. Dropping it unblocks the signals. Belongs to its thread.
pub(crate) struct Locked<'l, T> {
    lock: &'l SpinLock<T>,
    signals: libc::sigset_t,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread has the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread has the lock, and `self` is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        self.lock.taken.store(false, Ordering::Release);
        // SAFETY: the set is the one that `block_signals` has filled.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.signals, ptr::null_mut()) };
    }
}

/// Blocks all signals, and returns those that were blocked before.
fn block_signals() -> libc::sigset_t {
    let (mut all, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::<libc::sigset_t>::uninit());
    // SAFETY: sigfillset writes the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` is filled; the call writes `before`, and cannot fail with these arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: written by the call.
    unsafe { before.assume_init() }
}
