//! Memory for modules. Only this crate maps, publishes, protects or writes code.
//!
//! - [`Arena`]: one per process, in the low 2 GiB if possible, with one stripe per [`Class`]. A stripe is one mapping
//!   that never changes its protection, except for ro_after_init.
//! - [`Staged`]: text or read-only data of a module that is being loaded: a private, writable, non-executable buffer,
//!   with the addresses of its final place. The final place holds INT3 until then. [`Staged::publish`] consumes the
//!   buffer and returns [`Published`], which can no longer be written. In-flight and finished memory are different
//!   types.
//! - [`Fresh`]: data at its final place from the start; [`Fresh::settle`] hands the data over to the module's code.
//! - [`poke`]: changes published text while threads run through it, one batch of edits at a time. [`HostText`]: code of
//!   the host itself that may be poked.
//! - [`Annex`]: memory for code within reach of the host's own.
//! - [`fill`]: changes published text that no thread can have entered, and constants.
//! - [`traps_in_flight`]: the number of threads between a trap of a batch and the code to which the trap leads them.
//! - [`Pages`]: memory that is allocated without the allocator.
//! - [`TextLock`]: only the holder of this lock may write into published memory.
//! - [`Describe`]: the report of a call into text that is not published ([`Staged::owner`]).
//!
//! Executable mappings are written through `/proc/self/mem`, which bypasses the protection of a private mapping. No
//! address is ever writable and executable. Dropping any of the types above frees its memory. Freed text is filled with
//! INT3 and all cores are synchronised before the text can be taken again.

mod vocabulary;
mod annex;
mod arena;
mod batch;
mod create;
mod emulate;
mod fork;
mod fill;
mod host_text;
mod int3;
mod maps;
mod obstacle;
mod owners;
mod pages;
mod place;
mod poke;
mod ranges;
mod registered;
mod region;
mod rendezvous;
mod report;
mod reserve;
mod room;
mod spans;
mod staging;
mod stripe;
mod sync;
mod trap;
mod variables;
mod write;

pub use annex::{Annex, AnnexError};
pub use arena::{Arena, StripeUsage};
pub use batch::traps_in_flight;
pub use fill::fill;
pub use fork::on_fork;
pub use host_text::{HostText, HostTextError};
pub use obstacle::shadow_stacks;
pub use owners::Describe;
pub use pages::Pages;
pub use place::{Fresh, Placed, Protected};
pub use poke::{poke, poke_chosen};
pub use region::filled;
pub use staging::{Published, Staged};
pub use variables::{load_u32, load_u64, store_u32, store_u64};
pub use vocabulary::class::Class;
pub use vocabulary::error::{ArenaError, OutOfMemory, PublishFailed, WriteFailed};
pub use vocabulary::machine::{INT3, PAGE};
pub use vocabulary::poke_error::PokeError;
pub use vocabulary::poked::{Because, Poked, TrapMask, Way};
pub use write::TextLock;
