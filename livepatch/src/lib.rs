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
//!
//! # Layers
//! A file imports only from its own layer and from the layers before it. No two files import each other. The state of
//! live patching is one table. The functions of a layer take only the parts of the table that they need.
//!
//! | layer | files |
//! |---|---|
//! | vocabulary | `spec`, `target`, `log`, `error`, `structs`, `record_sizes`, `previous_states`, `shadow`, `stub` |
//! | patches | `patch`, `find`, `object`, `patches`: the patches as data, and the function stacks |
//! | slices | `slices`: the parts of a patch's module that wait for an object |
//! | transition | `transition/`: which threads migrate, and when |
//! | table | `table`: patches, slices and transitions behind one lock |
//! | operations | `operate/`: enable, disable, load and unload, and the worker thread, which completes transitions |
//! | interface | `subscriber`, `status`, `exports` |

#![deny(unsafe_code)]

pub mod link;

mod spec;
mod target;
mod log;
mod structs;
mod record_sizes;
mod shadow;
mod previous_states;
#[cfg(target_arch = "x86_64")]
mod x86_64;
mod stub;
mod error;
mod patch;
mod find;
mod object;
mod patches;
mod slices;
mod transition;
mod table;
mod operate;
mod status;
mod subscriber;
mod exports;

pub use error::PatchError;
pub use exports::exports;
pub use log::Log;
pub use spec::{Callbacks, FuncSpec, ObjectSpec, PatchSpec, StateSpec, Transition};
pub use status::{MOST_FRAMES, ObjectStatus, PatchStatus, ThreadStack, thread_stacks};
pub use structs::StructError;
pub use stub::StubError;
pub use subscriber::Livepatch;
pub use target::Target;
pub use transition::{BlockReason, Blocked, checkpoint};
