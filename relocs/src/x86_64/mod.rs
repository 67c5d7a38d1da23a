//! Relocations, PLT entries and relaxation of x86-64.
//!
//! Another processor has to provide: the table of its ABI's relocations ([`ROWS`], [`row`], [`name`]; new formulas and
//! fields are variants of [`crate::RelocFormula`] and [`crate::RelocField`]), its PLT entry (the function `entry`, the
//! sizes, and the offset of an instruction that traps), and the instructions that may be rewritten to use a symbol
//! instead of its GOT slot. A processor without relaxation has no row with an opcode. For thread-local variables: the
//! sequences of its ABI and what they become if the variable has a fixed offset from the thread pointer.

mod plt;
mod relax;
mod rows;
mod tls;

pub(crate) use plt::{DISPLACEMENT_KIND, ENTRY, TRAP, UNWRITTEN, entry};
pub(crate) use relax::{ADDEND, OPCODE, RelaxableForm, may_begin};
pub(crate) use rows::COUNT;
pub use rows::{ROWS, name, row};
pub(crate) use tls::{DescriptorCall, GeneralDynamic, InitialExec, LocalDynamic, descriptor_load};
