//! Why functions are not traced.

use std::borrow::Cow;

use modload_edit::{Addr, Rejected};
use modload_text::{AnnexError, ArenaError, HostTextError, PokeError};
use modload_threads::frames::BadRows;
use thiserror::Error;

/// Tracing was not switched. All is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Two that say where calls go on cannot both be obeyed.
    #[error("{function} [{module}] is redirected already, and can be by one at a time")]
    Redirected {
        /// The function's module.
        module: String,
        /// The function.
        function: String,
    },
    /// Nothing at its entry can be made a jump.
    #[error("the function at {entry} {why}")]
    NoSite {
        /// Its entry.
        entry: Addr,
        /// Why not.
        why: Cow<'static, str>,
    },
    /// There is one recording at a time.
    #[error("functions are being recorded already: one recording at a time")]
    UnderWay,
    /// Time stamps of the processor mean nothing.
    #[error("functions cannot be recorded: the processor's time stamp counter does not run evenly (no invariant TSC)")]
    NoClock,
    /// A return address that is ours does not fit a shadow stack.
    #[error("returns cannot be recorded: this process has shadow stacks")]
    ShadowStack,
    /// There is no such size.
    #[error("a buffer of {bytes} bytes for each thread: it must be from 4096 bytes to 1 GiB")]
    Buffer {
        /// What was asked for.
        bytes: u64,
    },
    /// The host's own code cannot be poked there.
    #[error("functions of the host's own cannot be traced")]
    HostText(#[from] HostTextError),
    /// There is no room for stubs near the host's own code.
    #[error("functions of the host's own cannot be traced")]
    Annex(#[from] AnnexError),
    /// It is registered already, by this host or by another one.
    #[error("{function} of the host's own is registered already")]
    Registered {
        /// The function.
        function: String,
    },
    /// Text could not be changed.
    #[error(transparent)]
    Poke(#[from] PokeError),
    /// Two sites lie on one another.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// There is no arena, or no room in it for stubs.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Rows for stubs could not be made known.
    #[error(transparent)]
    Rows(#[from] BadRows),
    /// Threads could not be asked whether they are in a tracer.
    #[error("threads cannot be asked whether they are in the tracer")]
    Threads(#[from] modload_threads::Error),
}
