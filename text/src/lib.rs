//! Memory for modules. Only this crate maps, publishes, protects or writes code.
//!
//! - [`Arena`]: one per process, in the low 2 GiB if possible, with one stripe per [`Class`]. A stripe is one mapping
//!   that never changes its protection, except for ro_after_init.
//! - [`Staged`]: text or read-only data of a module that is being loaded: a private, writable, non-executable buffer,
//!   with the addresses of its final place. The final place holds INT3 until then. [`Staged::publish`] consumes the
//!   buffer and returns [`Published`], which can no longer be written. In-flight and finished memory are different
//!   types.
//! - [`NewData`]: data at its final place from the start; [`NewData::hand_over`] hands the data over to the module's
//!   code.
//! - [`poke`]: changes published text while threads run through it, one batch of edits at a time. [`HostText`]: code of
//!   the host itself that may be poked.
//! - [`Annex`]: memory for code within reach of the host's own.
//! - [`fill`]: changes published text that no thread can have entered, and constants.
//! - [`traps_in_flight`]: the number of threads between a trap of a batch and the code to which the trap leads them.
//! - [`Pages`]: memory that is allocated without the allocator.
//! - [`TextLock`]: only the holder of this lock may write into published memory.
//! - [`Describe`]: the report of a call into text that is not published ([`Staged::set_owner`]).
//!
//! The files are in seven tiers, a folder each. A file imports from its own tier and from the tiers above this one in
//! the table. There is no circle of imports.
//!
//! | folder | contents |
//! |---|---|
//! | `vocabulary` | facts about the machine, classes of memory, errors, and how a batch is written |
//! | `address_space` | the mappings of the process; reserving and mapping ranges |
//! | `writing` | the text lock, the synchronisation of cores, the host's ranges that may be written |
//! | `allocation` | the arena, staged and published text, data, the owners of text |
//! | `handlers` | the SIGTRAP handler with the batch that it reads, and the fork handlers |
//! | `change` | poke and fill: the protocols, and the choice among them |
//! | `process` | the creation of the arena; the host's own text, and annexes near it |
//!
//! Executable mappings are written through `/proc/self/mem`, which bypasses the protection of a private mapping. No
//! address is ever writable and executable. Dropping any of the types above frees its memory. Freed text is filled with
//! INT3 and all cores are synchronised before the text can be taken again.

mod vocabulary;
mod address_space;
mod writing;
mod allocation;
mod handlers;
mod change;
mod process;

pub use address_space::pages::Pages;
pub use allocation::arena::{Arena, StripeUsage};
pub use allocation::data::{ModuleData, NewData, ProtectedData};
pub use allocation::owners::Describe;
pub use allocation::staging::{Published, Staged};
pub use allocation::variables::{load_u32, load_u64, store_u32, store_u64};
pub use change::fill::fill;
pub use change::poke::{poke, poke_chosen};
pub use change::writable::read_fillable;
pub use change::x86_64::has_shadow_stack;
pub use handlers::batch::traps_in_flight;
pub use handlers::fork::on_fork;
pub use process::annex::{Annex, AnnexError};
pub use process::host_text::{HostText, HostTextError};
pub use vocabulary::class::Class;
pub use vocabulary::error::{ArenaError, OutOfMemory, PublishFailed, WriteFailed};
pub use vocabulary::machine::{INT3, PAGE};
pub use vocabulary::poke_error::PokeError;
pub use vocabulary::poked::{PokeProtocol, Poked, TrapMask, TrapObstacle};
pub use writing::text_lock::TextLock;
