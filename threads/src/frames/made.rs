//! Rows that are stated, not compiled: for code that no compiler has made.

use std::ops::Range;

use thiserror::Error;

use super::index::{Entries, Known, Overlap};
use super::registers::Register;

/// From an instruction of a piece of code on: where its caller's registers are.
///
/// The call frame address (CFA) is the stack pointer of the caller before its call, as in `.cfi_def_cfa`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Offset of the first instruction that this holds for, from the start of the code.
    pub from: u32,
    /// The CFA is this register's value and this many bytes more.
    pub cfa: (Register, i32),
    /// What is saved, and where, as an offset from the CFA. Without the return address here, the frame is the outermost.
    pub saved: Vec<(Register, i32)>,
}

impl Row {
    /// A row as at the first instruction of a function: nothing but the return address is saved.
    #[must_use]
    pub fn at_entry() -> Row {
        Row { from: 0, cfa: (Register::RSP, 8), saved: vec![(Register::RIP, -8)] }
    }
}

/// Rows that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadRows {
    /// The first row does not hold from the start, or one does not begin behind the one before it.
    #[error("row {row} begins at {from:#x}, which is not where it may")]
    Order {
        /// Which, from 0.
        row: usize,
        /// Where it begins.
        from: u32,
    },
    /// A frame that does not know where its caller's stack is.
    #[error("row {row} has its CFA relative to the return address")]
    Cfa {
        /// Which, from 0.
        row: usize,
    },
    /// Somebody else's rows are known for a part of the code.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

impl Known {
    /// Makes rows known for a piece of code, until the result is dropped. They are in the order of their offsets; the
    /// first begins at 0.
    ///
    /// # Errors
    /// [`BadRows`].
    pub fn stated(code: Range<u64>, rows: Vec<Row>) -> Result<Known, BadRows> {
        let mut least = 0..=0;
        for (row, stated) in rows.iter().enumerate() {
            if !least.contains(&stated.from) {
                return Err(BadRows::Order { row, from: stated.from });
            }
            if stated.cfa.0 == Register::RIP {
                return Err(BadRows::Cfa { row });
            }
            least = stated.from.saturating_add(1)..=u32::MAX;
        }
        if rows.is_empty() {
            return Err(BadRows::Order { row: 0, from: 0 });
        }
        Ok(Known::new(code, Entries::Stated(rows))?)
    }
}

/// The row that holds at an offset.
pub(crate) fn row_at(rows: &[Row], offset: u64) -> Option<&Row> {
    let behind = rows.partition_point(|row| u64::from(row.from) <= offset);
    rows.get(behind.checked_sub(1)?)
}
