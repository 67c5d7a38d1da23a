//! The one form in which all engines rewrite code: *at this address, replace these bytes by those, because of this
//! record*.
//!
//! - [`Addr`]: an address in the address space of a module. The difference of two addresses is an `i64`.
//! - [`Edit`]: `at`, `old`, `new`, `why`. The engines (relocations, alternatives, paravirt, static keys, tracing, live
//!   patching) are pure functions that pass edits to a [`Sink`].
//! - The sinks: [`EditSet`] keeps edits sorted and disjoint (for plans, collisions and explanations). [`Window`] checks
//!   `old` and stores `new` into a buffer (for a load). [`Counter`] only counts.
//!
//! - [`Code`]: memory that an engine reads and edits in turn. [`CodeBuffers`] is such memory in buffers. [`Ledger`]
//!   records which engine wrote which bytes and refuses an edit that may not overwrite another. [`ORDER`] and
//!   [`YIELDS`] are the rules.
//! - [`InstructionEffect`]: the effect of an instruction on a thread, for instructions at sites that change while
//!   threads run.
//! - [`encode_call`], [`encode_jump`], [`NOPS`], [`INT3`]: the instructions that several engines write.
//! - [`disassembled`]: code in readable form.
//!
//! This crate never sees a pointer, a file or mapped memory.

#![forbid(unsafe_code)]

mod addr;
mod edit;
mod order;
mod sink;
mod set;
mod code;
mod ledger;
mod table;
mod width;
// One processor per build. `docs/porting.md` lists the contents of such a module, for every crate.
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("modload has no module for this processor; docs/porting.md says what one has to provide");

pub use addr::Addr;
pub use code::{Code, CodeBuffers, PieceKind};
pub use edit::{Edit, EditOrigin, Engine};
pub use ledger::{Edits, Ledger};
pub use order::{ORDER, YIELDS, Yields, may_follow};
pub use set::EditSet;
pub use sink::{Counter, Rejected, Sink, Window};
pub use table::{MAX_SITE, PlanError, RecordTable, refused, write};
pub use width::{index, wide};
pub use x86_64::{
    BRANCH_LEN, INT3, InstructionEffect, NOP, NOPS, ZERO, disassembled, encode_call, encode_jump, fill_with_nops,
    formatter, is_one_instruction,
};
