//! Live patching, with Linux's semantics (Documentation/livepatch) and threads for tasks.
//!
//! - [`Livepatch`]: the second subscriber of both chains. Enables, disables, reverses and forces patches.
//! - [`PatchSpec`], [`ObjectSpec`], [`FuncSpec`], [`Callbacks`], [`StateSpec`]: the description of a patch.
//!   [`Transition`]: how threads migrate to a patch.
//! - [`PatchStatus`]: the patches of a host, and the threads that block a transition.
//! - [`checkpoint`]: a place where a thread can migrate.
//! - [`link`]: makes a patch from an object in which references to other objects are marked. The relocations of those
//!   references then wait for their objects.
//! - [`exports`]: the functions that modules call. [`Livepatch::enable_from_init`] implements the remaining one,
//!   `klp_enable_patch`.

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
