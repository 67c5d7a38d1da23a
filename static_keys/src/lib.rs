//! Static keys and static calls. A branch that seldom changes costs a NOP, and a call of a function that seldom changes
//! costs a direct call.
//!
//! - [`StaticKeys`]: the subscriber. It sets the sites of a module before any notifier of a module or of the embedder
//!   runs. When a key is switched, its sites in all modules change in one batch.
//! - [`enable`], [`disable`], [`increment`], [`decrement`]: switch a key of the host or of a module, given its address.
//! - [`update_static_call`]: changes the function that a static call calls.
//! - [`write_slice`]: writes the sites of a live patch whose keys belong to another module.
//! - [`StaticKey`], [`StaticCall`]: keys that the host owns.
//! - [`jump_labels`], [`static_calls`], [`trampoline`]: the pure planners. They compute the bytes of a site for a state
//!   of its key, and read and edit a [`modload_edit::Code`].
//!
//! The behaviour is that of Linux 6.1's `kernel/jump_label.c`, `kernel/static_call_inline.c` and
//! `arch/x86/kernel/{jump_label,static_call}.c`.

#![forbid(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod x86_64;
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
    CallKind, CallSite, CallTarget, StaticCalls, call_code, call_sites, set_site, static_calls, trampoline,
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

/// Why a record cannot be applied.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum KeySiteProblem {
    /// The record cannot be read.
    #[error("its section is no whole number of records")]
    PartOfRecord,
    /// The site is not in text.
    #[error("its site is not within text")]
    SiteOutside,
    /// The site is neither a NOP nor the jump to the record's target.
    #[error("its site is neither a NOP of 2 or 5 bytes nor the jump to {0}")]
    NeitherNopNorJump(Addr),
    /// The site is not an instruction that a static call can be.
    #[error("its site is not {0}")]
    OtherInstruction(&'static str),
    /// The target is too far from the site.
    #[error("{0} is out of the reach of its site")]
    OutOfReach(Addr),
    /// A return at the site needs a thunk whose address is not known.
    #[error(transparent)]
    Return(#[from] modload_alternatives::RewriteProblem),
}

/// The error of the planners of this crate.
pub(crate) type KeyPlanError = modload_edit::PlanError<KeySiteProblem>;
