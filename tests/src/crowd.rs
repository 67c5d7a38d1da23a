//! Crowds of threads to be held or asked, and the signals that they block.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use modload_edit::wide;
use modload_threads::{Interrupted, Probe, Tid};

/// Threads that go on until this is dropped.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Each of `count` threads calls `step` again and again.
    #[must_use]
    pub fn of(count: usize, step: impl Fn() + Send + Sync + 'static) -> Crowd {
        let (stop, step) = (Arc::new(AtomicBool::new(false)), Arc::new(step));
        let begun = Arc::new(Barrier::new(count + 1));
        let threads = (0..count)
            .map(|_| {
                let (stop, step, begun) = (stop.clone(), step.clone(), begun.clone());
                thread::spawn(move || {
                    begun.wait();
                    while !stop.load(Ordering::Relaxed) {
                        step();
                    }
                })
            })
            .collect();
        begun.wait();
        Crowd { stop, threads }
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn count(&self) -> u64 {
        wide(self.threads.len())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            assert!(thread::panicking() || joined.is_ok());
        }
    }
}

/// Asks a thread for three values: the id in the request, the thread's own id, and the address of its next instruction.
#[derive(Clone, Copy, Debug)]
pub struct WhoAndWhere;

// SAFETY: reads registers only.
unsafe impl Probe for WhoAndWhere {
    type Answer = (Tid, Tid, u64);

    fn probe(&self, interrupted: Interrupted<'_>) -> Self::Answer {
        (interrupted.tid(), Tid::current(), interrupted.rip())
    }
}

/// Changes this thread's signal mask by the system call itself, and returns the old mask. The C library's functions
/// leave out that library's own signals, and modload uses one of these signals.
pub fn mask(how: i32, signals: u64) -> u64 {
    let mut before = 0_u64;
    let size = size_of::<u64>();
    // SAFETY: the kernel reads a set of 64 signals and writes one.
    let failed = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const signals, &raw mut before, size) };
    assert_eq!(failed, 0);
    before
}

/// A signal's bit in a mask of the kernel's.
#[must_use]
pub fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Blocks a signal in this thread. Returns whether the signal was blocked before.
#[must_use]
pub fn block(signal: i32) -> bool {
    mask(libc::SIG_BLOCK, bit(signal)) & bit(signal) != 0
}

/// Unblocks a signal in this thread.
pub fn unblock(signal: i32) {
    let _ = mask(libc::SIG_UNBLOCK, bit(signal));
}
