//! The one language of all rewriting: *at this address, these bytes become those, and this is why*.
//!
//! - [`Addr`]: an address in the space a module will run in; the difference of two is an `i64`.
//! - [`Edit`]: `at`, `old`, `new`, `why`. The engines (relocations, alternatives, paravirt, static keys,
//!   tracing, live patching) are pure functions that feed edits to a [`Sink`].
//! - The sinks: [`EditSet`] keeps edits sorted and disjoint (plans, collisions, explanations),
//!   [`Window`] checks `old` and stores into a buffer (a load), [`Counter`] only counts.
//!
//! - [`Code`]: what an engine reads and edits in turn. [`Space`] is one made of buffers, [`Ledger`] one that keeps who
//!   wrote what and refuses what must not meet; [`ORDER`] and [`YIELDS`] are the rules.
//! - [`Step`]: what an instruction does to a thread, for those at sites that change while threads run.
//! - [`disassembled`]: bytes of code for people.
//!
//! This crate never sees a pointer, a file or mapped memory.

#![forbid(unsafe_code)]

mod addr;
mod edit;
mod order;
mod sink;
mod set;
mod step;
mod code;
mod ledger;
mod listing;
mod nops;
mod table;
mod width;

pub use addr::Addr;
pub use code::{Code, PieceKind, Space};
pub use edit::{Edit, Engine, Why};
pub use ledger::{Edits, Ledger};
pub use listing::{disassembled, formatter};
pub use nops::{NOPS, fill_with_nops};
pub use order::{ORDER, YIELDS, Yields, may_follow};
pub use set::EditSet;
pub use sink::{Counter, Rejected, Sink, Window};
pub use step::{Step, ZERO, is_one_instruction};
pub use table::{MAX_SITE, PlanError, Table, refused, write};
pub use width::{index, wide};
