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
mod problem;
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
pub use host_key::{StaticCall, StaticKey, return0};
pub use problem::KeySiteProblem;
pub use slice::{SliceError, SliceSites, write_slice};
pub use subscriber::StaticKeys;
pub use switch::{
    KeyError, count, decrement, disable, enable, increment, set_trap_mask, static_call_function, update_static_call,
};
