//! The reasons for which functions are not traced.

use std::borrow::Cow;

use modload_edit::{Addr, Rejected};
use modload_text::{AnnexError, ArenaError, HostTextError, PokeError};
use modload_threads::frames::BadRows;
use thiserror::Error;

/// An error: tracing was not switched. Nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The function is redirected already. Two redirections of one function contradict each other.
    #[error("{function} [{module}] is redirected already: a function can have one redirection at a time")]
    Redirected {
        /// The function's module.
        module: String,
        /// The function.
        function: String,
    },
    /// The function's entry has no instruction that can become a jump.
    #[error("the function at {entry} {why}")]
    NoSite {
        /// The function's entry.
        entry: Addr,
        /// The reason.
        why: Cow<'static, str>,
    },
    /// A recording is under way already. Only one recording can be under way at a time.
    #[error("a recording is under way already: only one is possible at a time, so end it first")]
    UnderWay,
    /// The processor's time stamps do not run evenly, so they give no times.
    #[error("functions cannot be recorded: the processor's time stamp counter does not run evenly (no invariant TSC)")]
    NoClock,
    /// The process has shadow stacks. A recording of returns replaces return addresses, and they would not match the
    /// shadow stack.
    #[error("returns cannot be recorded, because this process has shadow stacks: record calls")]
    ShadowStack,
    /// The buffer size is not valid.
    #[error("a buffer of {bytes} bytes for each thread is not possible: choose a size from 4096 bytes to 1 GiB")]
    Buffer {
        /// The requested size.
        bytes: u64,
    },
    /// The host's own code cannot be poked at these functions.
    #[error("the host's own functions cannot be traced")]
    HostText(#[from] HostTextError),
    /// There is no room for stubs near the host's own code.
    #[error("the host's own functions cannot be traced")]
    Annex(#[from] AnnexError),
    /// The function is registered already, by this host or by another host.
    #[error("the host's own function {function} is registered already")]
    Registered {
        /// The function.
        function: String,
    },
    /// Text could not be changed.
    #[error(transparent)]
    Poke(#[from] PokeError),
    /// Two sites overlap.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The arena does not exist, or has no room for stubs.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Unwind rows for stubs could not be registered.
    #[error(transparent)]
    Rows(#[from] BadRows),
    /// Threads could not be asked whether they are in a tracer.
    #[error("threads cannot be asked whether they are in the tracer")]
    Threads(#[from] modload_threads::Error),
}
