//! The registers of frames, and the form of frames, for x86-64 (psABI, 3.2.2, 3.4.1, figures 3.4 and 3.36).
//!
//! Another processor has to provide: its registers with their DWARF numbers, names and roles ([`Register`],
//! [`Registers`]), the rows of a function's first instruction ([`FACTORS`], [`AT_ENTRY_PROGRAM`], [`CFA_AT_ENTRY`],
//! [`RETURN_AT_ENTRY`]), how to read the
//! registers of running code ([`registers_here`], [`stack_pointer`]), and what calls and signals leave on a stack
//! ([`is_behind_call`], [`is_mark_of_signal_frame`]). Where a call leaves the return address in a register, a frame
//! without a saved return address is not the outermost one, and signed return addresses must be stripped.

mod here;
mod registers;
mod stack;

/// The factors of common information: code 1, data -8, and the return address's register.
pub(crate) const FACTORS: [u8; 3] = [1, 0x78, 16];

/// The call frame instructions for a function's first instruction: def_cfa rsp+8; offset rip, cfa-8.
pub(crate) const AT_ENTRY_PROGRAM: [u8; 5] = [0x0c, 7, 8, 0x90, 1];

/// The distance of the CFA from the stack pointer at a function's first instruction.
pub(crate) const CFA_AT_ENTRY: i32 = 8;

/// The place of the return address at a function's first instruction: on the stack.
pub(crate) const RETURN_AT_ENTRY: [(Register, i32); 1] = [(Register::RETURN, -CFA_AT_ENTRY)];

pub(crate) use here::{from_values, registers_here};
pub use registers::{Register, Registers};
pub use stack::is_behind_call;
pub(crate) use stack::{is_mark_of_signal_frame, stack_pointer};
