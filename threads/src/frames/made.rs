//! Rows that code declares itself: for code that no compiler has made. The rows are converted to the form that compilers
//! write, so there is one form of rows for walks and for the process's unwinder.

use std::ops::Range;

use thiserror::Error;

use super::index::{Known, Overlap};
use super::listing::{self, Malformed};
use super::x86_64::{CFA_AT_ENTRY, RETURN_AT_ENTRY, Register};

/// A row: the places of the caller's registers, from one instruction of a piece of code on.
///
/// The call frame address (CFA) is the stack pointer of the caller before its call, as in `.cfi_def_cfa`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The offset of the first instruction that the row holds for, from the start of the code.
    pub from: u32,
    /// The CFA, as a register and the number of bytes to add to its value.
    pub cfa: (Register, i32),
    /// The saved registers, each with its place as an offset from the CFA. Without the return address here, the frame
    /// is the outermost.
    pub saved: Vec<(Register, i32)>,
}

impl Row {
    /// Returns the row of a function's first instruction: only the return address is saved.
    #[must_use]
    pub fn at_entry() -> Row {
        Row { from: 0, cfa: (Register::STACK, CFA_AT_ENTRY), saved: RETURN_AT_ENTRY.to_vec() }
    }
}

/// Rows that are not valid.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadRows {
    /// The first row does not begin at 0, or a row does not begin behind the row before it.
    #[error("row {row} begins at {from:#x}, which is not where it may")]
    Order {
        /// The number of the row, from 0.
        row: usize,
        /// The offset at which the row begins.
        from: u32,
    },
    /// A row has its CFA relative to the return address.
    #[error("row {row} has its CFA relative to the return address")]
    Cfa {
        /// The number of the row, from 0.
        row: usize,
    },
    /// There is no code, or there is more than 1 GiB of code.
    #[error("there is no code, or more than 1 GiB of it")]
    Length,
    /// Other rows are known for a part of the code.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

impl Known {
    /// Makes rows known for a piece of code, until the result is dropped. The rows are in the order of their offsets;
    /// the first begins at 0.
    ///
    /// # Errors
    /// [`BadRows`].
    pub fn stated(code: Range<u64>, rows: &[Row]) -> Result<Known, BadRows> {
        let mut least = 0..=0;
        for (row, stated) in rows.iter().enumerate() {
            if !least.contains(&stated.from) {
                return Err(BadRows::Order { row, from: stated.from });
            }
            if stated.cfa.0 == Register::RETURN {
                return Err(BadRows::Cfa { row });
            }
            least = stated.from.saturating_add(1)..=u32::MAX;
        }
        if rows.is_empty() {
            return Err(BadRows::Order { row: 0, from: 0 });
        }
        Known::programmed(code, &program(rows))
    }

    /// Makes rows known like [`Known::stated`], by call frame instructions (DWARF 5, 6.4.2) with factors of 1: for rows
    /// that need expressions.
    ///
    /// # Errors
    /// [`BadRows`]. The instructions are not checked before a walk needs them.
    pub fn programmed(code: Range<u64>, program: &[u8]) -> Result<Known, BadRows> {
        let planned = listing::described(code, program).map_err(|_: Malformed| BadRows::Length)?;
        planned.publish()?.ok_or(BadRows::Length)
    }
}

/// Returns call frame instructions for rows, with factors of 1 (DWARF 5, 6.4.2).
fn program(rows: &[Row]) -> Vec<u8> {
    let mut program = Vec::new();
    let mut at = 0;
    for row in rows {
        if row.from != at {
            program.push(0x04); // advance_loc4
            program.extend((row.from - at).to_le_bytes());
            at = row.from;
        }
        program.extend([0x12, row.cfa.0.number()]); // def_cfa_sf
        signed(&mut program, row.cfa.1);
        for register in Register::ALL {
            match row.saved.iter().find(|(saved, _)| *saved == register) {
                Some((_, offset)) => {
                    program.extend([0x11, register.number()]); // offset_extended_sf
                    signed(&mut program, *offset);
                }
                None if register == Register::RETURN => program.extend([0x07, register.number()]), // undefined
                // The same state as without a rule: preserved, or not known.
                None if register.is_preserved() => program.extend([0x08, register.number()]), // same_value
                None => {}
            }
        }
    }
    program
}

/// Appends a number of variable length, with a sign (LEB128 in DWARF).
fn signed(program: &mut Vec<u8>, mut value: i32) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        let is_last = value == if low & 0x40 == 0 { 0 } else { -1 };
        program.push(if is_last { low } else { low | 0x80 });
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Register, Row, program, signed};

    #[test]
    fn numbers_are_those_of_the_standard() {
        for (value, bytes) in [
            (2, &[2][..]),
            (-2, &[0x7e]),
            (127, &[0xff, 0]),
            (-127, &[0x81, 0x7f]),
            (128, &[0x80, 1]),
            (-128, &[0x80, 0x7f]),
            (i32::MIN, &[0x80, 0x80, 0x80, 0x80, 0x78]),
            (i32::MAX, &[0xff, 0xff, 0xff, 0xff, 0x07]),
        ] {
            let mut written = Vec::new();
            signed(&mut written, value);
            assert_eq!(written, bytes, "{value}");
        }
    }

    #[test]
    fn a_row_states_what_is_saved_and_what_is_not() {
        let rows = [
            Row::at_entry(),
            Row { from: 4, cfa: (Register::RBP, 16), saved: vec![(Register::RIP, -8), (Register::RBP, -16)] },
        ];
        let preserved = |rbp: &[u8]| [&[8, 3][..], rbp, &[8, 12, 8, 13, 8, 14, 8, 15, 0x11, 16, 0x78]].concat();
        let first = [&[0x12, 7, 8][..], &preserved(&[8, 6])].concat();
        let second = [&[4, 4, 0, 0, 0, 0x12, 6, 16][..], &preserved(&[0x11, 6, 0x70])].concat();
        assert_eq!(program(&rows), [first, second].concat());
        let outermost = Row { saved: Vec::new(), ..Row::at_entry() };
        assert!(program(&[outermost]).ends_with(&[7, 16]));
    }
}
