//! Memory for modules: the only crate that maps, publishes, protects or writes code.
//!
//! - [`Arena`]: one per process, in the low 2 GiB if they can be had, with one stripe per [`Class`]. A stripe is one
//!   mapping that never changes its protection, ro_after_init alone excepted.
//! - [`Staged`]: text or read-only data of a module that is being loaded: a private, writable, non-executable buffer,
//!   addressed as if it already stood at its place. At that place stands INT3. [`Staged::publish`] consumes it and
//!   gives [`Published`], which can no longer be written. In-flight and finished memory are different types.
//! - [`Fresh`]: data that stands at its place from the start; [`Fresh::settle`] gives it to the module's code.
//! - [`poke`]: changes published text while threads run through it, a batch of edits at a time. [`HostText`]: code of the
//!   host itself that may be poked.
//! - [`Annex`]: memory for code within reach of the host's own.
//! - [`fill`]: changes published text that nobody can have entered, and constants.
//! - [`traps_in_flight`]: how many threads are between a trap of a batch and where it leads them.
//! - [`Pages`]: memory that is had without the allocator.
//! - [`TextLock`]: who holds it may write into published memory, nobody else can.
//! - [`Describe`]: how a call into text that is not there is reported ([`Staged::owner`]).
//!
//! What is mapped executable is written through `/proc/self/mem`, past the protection of a private mapping. No
//! address is ever writable and executable. Dropping any of the types above gives its memory back; freed text is
//! filled with INT3 and all cores are synchronised before anybody else can get it.

mod annex;
mod arena;
mod batch;
mod emulate;
mod fork;
mod fill;
mod host_text;
mod maps;
mod obstacle;
mod owners;
mod pages;
mod place;
mod poke;
mod ranges;
mod region;
mod rendezvous;
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
pub use arena::{Arena, ArenaError, Class, OutOfMemory, StripeUsage};
pub use batch::traps_in_flight;
pub use fill::fill;
pub use fork::on_fork;
pub use host_text::{HostText, HostTextError};
pub use obstacle::{Because, shadow_stacks};
pub use owners::Describe;
pub use pages::Pages;
pub use place::{Fresh, Placed, Protected};
pub use poke::{PokeError, Poked, TrapMask, Way, poke, poke_chosen};
pub use region::filled;
pub use staging::{PublishFailed, Published, Staged};
pub use variables::{load_u32, load_u64, store_u32, store_u64};
pub use write::{TextLock, WriteFailed};

/// Size of a page of this machine in bytes.
pub const PAGE: u64 = 4096;

/// `INT3`, which fills text that nobody may run.
pub const INT3: u8 = 0xcc;
