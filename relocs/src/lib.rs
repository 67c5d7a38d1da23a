//! Relocations of x86-64 modules: the rows of the System V ABI's table, the GOT slots and PLT entries that they need,
//! and two pure functions that convert records to edits and to the inverse edits.
//!
//! - [`ROWS`]: one [`RelocRow`] for each relocation number, with the computed [`RelocFormula`] and the [`RelocField`]
//!   that takes it. The table also has a row for each relocation that a loader of relocatable objects does not support,
//!   with the [`Reason`].
//! - [`SlotPlan`]: the symbols that need a GOT slot or a PLT entry, counted before any address is known. Once the two
//!   tables have addresses, the plan becomes [`Slots`].
//! - [`IndirectPlan`]: the entries and slots of the indirect functions that a module defines.
//! - [`apply`] reads the records of one section ([`RelocatedSection`]) and passes edits to a [`modload_edit::Sink`];
//!   [`clear`] passes the exact inverse. A [`RelocSymbols`] provides the facts about symbols.
//! - [`RelocError`]: which relocation, and by how much a value misses, as data. The caller adds the names of section
//!   and symbol.
//!
//! ```
//! use modload_abi::{Records, Rela};
//! use modload_edit::{Addr, Window};
//! use modload_relocs::{OnDiscarded, SlotPlan, RelocSymbol, RelocSymbolKind, RelocatedSection, apply};
//!
//! let file = [0xe8, 0, 0, 0, 0]; // call callee
//! let mut rela = Vec::new(); // R_X86_64_PLT32 callee-4 at +1
//! rela.extend(1_u64.to_le_bytes());
//! rela.extend(4_u32.to_le_bytes());
//! rela.extend(0_u32.to_le_bytes());
//! rela.extend((-4_i64).to_le_bytes());
//! let relas = Records::<Rela>::new(&rela)?;
//!
//! // Lay out: count the slots, then decide the addresses.
//!
//! // Relocate: the callee is in reach, so the call goes straight to it.
//!
//! This crate never sees a pointer, a file or mapped memory. Relocation numbers are written here and nowhere else.

#![forbid(unsafe_code)]

mod apply;
mod counts;
mod error;
mod facts;
mod field;
mod indirect;
mod relax;
mod row;
mod slots;

pub use apply::{apply, clear};
pub use counts::RelocCounts;
pub use error::{RelocAdvice, RelocError, RelocSite};
pub use facts::{OnDiscarded, RelocSymbol, RelocSymbolKind, RelocSymbols, RelocatedSection};
pub use field::RelocField;
pub use indirect::IndirectPlan;
pub use row::{Before, ROWS, Reason, RelocFormula, RelocRow, name, row};
pub use slots::{SlotPlan, Slots};
