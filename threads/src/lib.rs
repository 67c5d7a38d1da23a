//! The threads of this process: who they are, what each of them is doing, and how to stop them all for a moment.
//!
//! - [`Tasks`]: the process's threads as the kernel lists them; [`status`], [`name`]: one of them;
//!   [`is_alone`]: whether there are any others.
//! - [`run_in_each`]: a [`Probe`] runs in every other thread, wherever it stands; [`run_here`]: in this one.
//! - [`hold`]: every other thread stands still until [`Held`] is dropped, and executes a core-serialising instruction
//!   before it goes on. The holder may look at their registers, and change where they go on.
//! - [`use_signal`]: which real-time signal all this is done with; [`counts`]: what it did to others.
//! - [`before_fork`] and what follows it: what a `pthread_atfork` handler calls.
//! - [`boundary`]: where exceptions and panics of code that is called end.
//! - [`creation`]: threads that are known by their creator; [`thread_exit`]: destructors to be called when a thread ends, by owner.
//! - [`word`]: a word of each thread, for who stops threads.
//! - [`frames`]: one walker for every thread's stack. It reads call frame information and never guesses.
//!
//! A leaf crate: it imports nothing of modload's, and an address is a `u64` here.
//!
//! The kernel has no call that stops the threads of one's own process, so each is sent a signal. Nothing that is held
//! may be needed by the holder: a held thread may own the allocator's lock, or any other. Between the first signal and
//! the release this crate therefore takes no lock and no memory, and makes its system calls itself.
//!
//! Not held, because they are other processes: a `vfork` child, or whatever else shares memory by `CLONE_VM`.

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
mod each;
mod hold;
mod fork;
pub mod boundary;
pub mod creation;
pub mod thread_exit;
pub mod frames;
pub mod word;

pub use alone::is_alone;
pub use each::{Probe, run_here, run_in_each};
pub use error::{Error, Straggler, Stragglers, Why};
pub use fork::{after_fork_in_child, after_fork_in_parent, before_fork};
pub use handler::{Counts, Interrupted, counts};
pub use hold::{Held, hold, hold_or_look};
pub use signal::{can_see, signal, use_signal};
pub use sleeper::Sleeper;
pub use task::{Name, State, Status, Tasks, Tid, name, status};

/// How long threads are waited for, unless the caller says otherwise. Starting and ending a thread blocks all signals
/// for a moment, and on a busy machine each thread must first get its turn.
pub const DEFAULT_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);
