//! The instructions of x86-64 that several crates share.
//!
//! Another processor has to provide the same names: the instruction that traps, and its length ([`INT3`]), the NOPs ([`NOP`],
//! [`NOPS`], [`fill_with_nops`]), the call and the jump with a displacement ([`encode_call`], [`encode_jump`]), the
//! effect of every instruction that a site can have ([`InstructionEffect`], [`ZERO`]), and a decoder for the lengths and
//! the text of instructions ([`is_one_instruction`], [`disassembled`], [`formatter`]).

mod branch;
mod listing;
mod nops;
mod step;

pub use branch::{BRANCH_LEN, INT3, encode_call, encode_jump};
pub use listing::{disassembled, formatter};
pub use nops::{NOP, NOPS, fill_with_nops};
pub use step::{InstructionEffect, ZERO, is_one_instruction};
