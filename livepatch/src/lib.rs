//! Live patching, with Linux's semantics (Documentation/livepatch) and threads for tasks.
//!
//! - [`Livepatch`]: the second subscriber of both chains; enables, disables, turns round and forces patches.
//! - [`PatchSpec`], [`ObjectSpec`], [`FuncSpec`], [`Callbacks`], [`StateSpec`]: what a patch is to do; [`Transition`]: how threads
//!   go over to it.
//! - [`PatchStatus`]: which patches there are, and who stands in the way of a transition.
//! - [`checkpoint`]: where a thread can go over.
//! - [`link`]: an object in which references to other objects are marked becomes a patch whose relocations wait for them.
//! - [`exports`]: what modules call; [`Livepatch::enable_from_init`] is behind the rest, `klp_enable_patch`.

#![deny(unsafe_code)]

pub mod link;

mod spec;
mod error;
mod structs;
mod record_sizes;
mod shadow;
mod previous;
mod stub;
mod table;
mod find;
mod slices;
mod transition;
mod operate;
mod status;
mod subscriber;
mod exports;

pub use error::PatchError;
pub use exports::exports;
pub use spec::{Callbacks, FuncSpec, ObjectSpec, PatchSpec, StateSpec, Transition};
pub use status::{DEEPEST_SHOWN, ObjectStatus, PatchStatus, Standing, standing};
pub use structs::StructError;
pub use stub::StubError;
pub use subscriber::Livepatch;
pub use table::Log;
pub use transition::{Blocked, Target, Why, checkpoint};
