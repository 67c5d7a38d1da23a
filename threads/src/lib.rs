//! The threads of this process: lists them, inspects each of them, and stops all of them for a moment.
//!
//! - [`Tasks`]: the process's threads as the kernel lists them; [`status`], [`name`]: details of one thread;
//!   [`is_alone`]: whether the process has more than one thread.
//! - [`run_in_each`]: runs a [`Probe`] in every other thread, between any two of the thread's instructions;
//!   [`run_here`]: runs a probe in the calling thread.
//! - [`hold`]: stops every other thread until [`Held`] is dropped. Each held thread executes a core-serialising
//!   instruction before it resumes. The holder may read the registers of held threads, and change the address at which
//!   they resume.
//! - [`use_signal`]: selects the real-time signal that this crate uses; [`counts`]: counts the side effects on other
//!   code.
//! - [`before_fork`], [`after_fork_in_parent`], [`after_fork_in_child`]: the functions that a `pthread_atfork` handler
//!   calls.
//! - [`boundary`]: the frame at which exceptions and panics of called code end.
//! - [`creation`]: threads that carry the number of their creator; [`thread_exit`]: destructors that run when a thread
//!   ends, by owner.
//! - [`word`]: words in each thread's own memory, for code that stops threads.
//! - [`frames`]: one walker for every thread's stack. The walker reads call frame information and never guesses.
//!
//! A leaf crate: it depends on no other crate of modload, and an address is a `u64` here.
//!
//! The kernel has no call that stops the threads of the calling process, so this crate sends each thread a signal. The
//! holder must not need anything that a held thread may own: a held thread may own the allocator's lock, or any other
//! lock. Between the first signal and the release, this crate therefore takes no lock, allocates no memory, and makes
//! its system calls directly.
//!
//! A `vfork` child and any other process that shares the memory by `CLONE_VM` are not held, because they are other
//! processes.

#[cfg(target_arch = "x86_64")]
mod x86_64;
mod system;
mod task;
mod alone;
mod error;
mod signal;
mod turn;
mod slot;
mod sleeper;
mod clear;
mod handler;
mod round;
mod lack;
mod each;
mod hold;
mod fork;
mod fork_handlers;
pub mod boundary;
pub mod creation;
pub mod thread_exit;
pub mod frames;
pub mod word;

pub use alone::is_alone;
pub use each::{Probe, run_here, run_in_each};
pub use error::{Error, Straggler, StragglerReason, Stragglers};
pub use fork::{after_fork_in_child, after_fork_in_parent, before_fork};
pub use fork_handlers::ForkHandlers;
pub use handler::{Interrupted, SavedErrno, SignalCounts, counts};
pub use hold::{Held, hold, hold_or_look};
pub use signal::{Disposition, can_see, signal, use_signal};
pub use sleeper::Sleeper;
pub use task::{Name, Status, Tasks, ThreadState, Tid, name, status};

/// The time limit for waiting for threads, unless the caller gives another one. Starting and ending a thread blocks all
/// signals for a moment, and on a busy machine each thread must first get processor time.
pub const DEFAULT_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);
