//! Threads to be held or asked: crowds of them, and what they block.

use std::ptr;
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

    /// How many they are.
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

/// Where a thread stands: as it is told, who it is, and its next instruction.
#[derive(Clone, Copy, Debug)]
pub struct WhoAndWhere;

// SAFETY: reads registers only.
unsafe impl Probe for WhoAndWhere {
    type Answer = (Tid, Tid, u64);

    fn probe(&self, interrupted: Interrupted<'_>) -> Self::Answer {
        (interrupted.tid(), Tid::current(), interrupted.rip())
    }
}

fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: a signal set is integers; sigemptyset fills it in.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: the set is ours, and has been filled in.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    set
}

/// Blocks a signal in this thread; whether it was blocked before.
#[must_use]
pub fn block(signal: i32) -> bool {
    let set = set_of(signal);
    let mut before = set_of(signal);
    // SAFETY: both sets are ours.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
    assert_eq!(failed, 0);
    // SAFETY: the set is ours and filled in.
    unsafe { libc::sigismember(&raw const before, signal) == 1 }
}

/// Unblocks a signal in this thread.
pub fn unblock(signal: i32) {
    let set = set_of(signal);
    // SAFETY: the set is ours.
    assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) }, 0);
}
