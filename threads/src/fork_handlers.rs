//! Registers fork handlers, once in a process.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::system;

/// Not registered.
const NO: i32 = 0;
/// Registered.
const YES: i32 = -1;

/// Three functions that the C library calls around each fork (`pthread_atfork`).
///
/// A child that is forked while another thread registers the handlers registers them once more: std's `OnceLock` would wait in the
/// child for a thread that the child does not have. So the C library may call each function twice for one fork, one call after the
/// other.
#[derive(Debug)]
pub struct ForkHandlers {
    /// [`NO`], [`YES`], or the number of the process in which a thread is registering the handlers.
    state: AtomicI32,
    prepare: extern "C" fn(),
    parent: extern "C" fn(),
    child: extern "C" fn(),
}

impl ForkHandlers {
    /// Makes handlers that are not registered: before a fork in the parent, and after a fork in the parent and in the child.
    #[must_use]
    pub const fn new(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> ForkHandlers {
        ForkHandlers { state: AtomicI32::new(NO), prepare, parent, child }
    }

    /// Registers the handlers, if they are not registered yet.
    ///
    /// # Errors
    ///
    /// The error of `pthread_atfork`: there is no memory. The next call tries again.
    pub fn register(&'static self) -> io::Result<()> {
        let process = system::getpid();
        loop {
            match self.state.load(Ordering::Acquire) {
                YES => return Ok(()),
                other if other == process => std::thread::yield_now(),
                before if self.take(before, process) => return self.register_now(),
                _ => {}
            }
        }
    }

    fn take(&self, before: i32, process: i32) -> bool {
        self.state.compare_exchange(before, process, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn register_now(&'static self) -> io::Result<()> {
        // SAFETY: the three functions are `extern "C"`, take no arguments, and live as long as the program.
        let failed = unsafe { libc::pthread_atfork(Some(self.prepare), Some(self.parent), Some(self.child)) };
        self.state.store(if failed == 0 { YES } else { NO }, Ordering::Release);
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}
