//! Static keys and static calls: code that branches on what seldom changes, and calls what seldom changes, at the price
//! of a NOP and of a direct call.
//!
//! - [`StaticKeys`]: the subscriber. What stands at a module's sites is right before anyone's own notifier runs, and is
//!   changed in all modules at once when a key is switched.
//! - [`enable`], [`disable`], [`increment`], [`decrement`]: switch a key, the host's or a module's, by its address.
//! - [`update_static_call`]: has a static call call another function.
//! - [`write_slice`]: sites of a live patch whose keys are another module's.
//! - [`StaticKey`], [`StaticCall`]: keys that the host owns.
//! - [`jump_labels`], [`static_calls`], [`trampoline`]: the pure planners behind it. What stands at a site for a state of
//!   its key; they read and edit a [`modload_edit::Code`].
//!
//! Behaviour is that of Linux 6.1's `kernel/jump_label.c`, `kernel/static_call_inline.c` and
//! `arch/x86/kernel/{jump_label,static_call}.c`.

#![forbid(unsafe_code)]

mod jump_label;
mod static_call;
mod far;
mod host_key;
mod table;
mod switch;
mod boundaries;
mod subscriber;
mod slice;
mod exports;

pub use jump_label::{JumpSite, KeyState, SiteBytes, jump_labels, jump_sites};
pub use static_call::{
    CallKind, CallSite, StaticCalls, Target, call_code, call_sites, set_site, static_calls, trampoline,
};

pub use boundaries::NotAnInstruction;
pub use exports::exports;
pub use far::return0;
pub use host_key::{StaticCall, StaticKey};
pub use slice::{SliceError, SliceSites, write_slice};
pub use subscriber::StaticKeys;
pub use switch::{
    KeyError, count, decrement, disable, enable, increment, set_trap_mask, static_call_function, update_static_call,
};

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
