//! Static keys and static calls: what stands at a site for the state of its key.
//!
//! - [`jump_labels`]: `__jump_table`. A site is a jump or a NOP of the same length.
//! - [`static_calls`]: `.static_call_sites`. A site is a direct call of what its key's function is, or nothing.
//! - [`trampoline`]: the place that code calls which does not know the key.
//!
//! Pure functions that read and edit a [`modload_edit::Code`]. Behaviour is that of Linux 6.1's
//! `arch/x86/kernel/{jump_label,static_call}.c`.

#![forbid(unsafe_code)]

mod jump_label;
mod static_call;

pub use jump_label::{KeyState, jump_labels};
pub use static_call::{StaticCalls, Target, static_calls, trampoline};

use modload_edit::Addr;
use thiserror::Error;

/// What is wrong with a record, or with the place it means.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Problem {
    /// The record cannot be read.
    #[error("its section is no whole number of records")]
    PartOfRecord,
    /// The site is not in text.
    #[error("its site is not within text")]
    SiteOutside,
    /// The site is neither the NOP nor the jump that belongs there.
    #[error("its site is neither a NOP of 2 or 5 bytes nor the jump to {0}")]
    NeitherNopNorJump(Addr),
    /// The site is none of the things that a static call is.
    #[error("its site is not {0}")]
    OtherInstruction(&'static str),
    /// The target is too far away.
    #[error("{0} is out of the reach of its site")]
    OutOfReach(Addr),
    /// A return there goes through a thunk that is not known.
    #[error(transparent)]
    Return(#[from] modload_alternatives::Problem),
}

/// Why an engine of this crate stopped.
pub(crate) type Error = modload_edit::PlanError<Problem>;
