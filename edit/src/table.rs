//! Tables of records for places where code is rewritten, and the error for a record that is refused.

use std::fmt;

use thiserror::Error;

use crate::{Addr, Code, Edit, EditOrigin, Rejected, disassembled, wide};

/// A section of records, with its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordTable {
    /// The index of the section in the module's section header table, as in the [`EditOrigin`] of the edits.
    pub section: u32,
    /// The number, within the section, of the first record of this table: 0 for a whole section, more for a part.
    pub first: u32,
    /// The address of the first record.
    pub at: Addr,
    /// The size of this table in bytes.
    pub size: u64,
}

impl RecordTable {
    /// Describes a whole section.
    #[must_use]
    pub fn of_section(section: u32, at: Addr, size: u64) -> RecordTable {
        RecordTable { section, first: 0, at, size }
    }

    /// Returns the part with the records `from..to`, numbered as in the section. `record` is the size of a record.
    #[must_use]
    pub fn part(&self, record: u64, from: u32, to: u32) -> RecordTable {
        let skipped = record * u64::from(from.saturating_sub(self.first));
        let size = record * u64::from(to.saturating_sub(from));
        RecordTable { first: from, at: self.at + skipped, size: size.min(self.size.saturating_sub(skipped)), ..*self }
    }

    /// Returns the numbers of the complete records. `record` is the size of a record.
    #[must_use]
    pub fn numbers(&self, record: u64) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(self.len(record))
    }

    /// Returns the number of complete records. `record` is the size of a record.
    #[must_use]
    pub fn len(&self, record: u64) -> u32 {
        u32::try_from(self.size / record).unwrap_or(u32::MAX)
    }

    /// Returns whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Returns the address and a copy of the record of this number, with all edits so far applied.
    #[must_use]
    pub fn record<const SIZE: usize>(&self, code: &(impl Code + ?Sized), number: u32) -> Option<(Addr, [u8; SIZE])> {
        let at = self.at + wide(SIZE) * u64::from(number.checked_sub(self.first)?);
        Some((at, code.bytes(at, SIZE)?.try_into().ok()?))
    }
}

/// Why an engine stopped. The engine has written nothing for this record.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlanError<P: fmt::Debug + fmt::Display> {
    /// A record cannot be processed.
    #[error("{why}: {problem}{}", place(.site))]
    Refused {
        /// The engine, the section and the record.
        why: EditOrigin,
        /// The address that the record names, and the bytes there, if there are any.
        site: Option<(Addr, Vec<u8>)>,
        /// The rule that the record violates.
        problem: P,
    },
    /// The sink has refused the edit.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

fn place(site: &Option<(Addr, Vec<u8>)>) -> String {
    match site {
        Some((at, bytes)) => format!("; the bytes at {at} are {bytes:02x?} ({})", disassembled(*at, bytes)),
        None => String::new(),
    }
}

/// Returns the error for a refused record, with up to `len` bytes of its site.
pub fn refused<P: fmt::Debug + fmt::Display>(
    code: &(impl Code + ?Sized),
    why: EditOrigin,
    site: Addr,
    len: usize,
    problem: P,
) -> PlanError<P> {
    let bytes = code.text(site, len).or_else(|| code.bytes(site, len)).filter(|bytes| !bytes.is_empty());
    PlanError::Refused { why, site: bytes.map(|bytes| (site, bytes.to_vec())), problem }
}

/// Writes `new` at an address. Writes nothing if the bytes are equal already.
///
/// # Errors
/// [`Rejected`]: the sink has refused the edit.
pub fn write(code: &mut (impl Code + ?Sized), at: Addr, new: &[u8], why: EditOrigin) -> Result<(), Rejected> {
    let mut old = [0; MAX_SITE];
    let found = code.bytes(at, new.len());
    let (Some(old), Some(found)) = (old.get_mut(..new.len()), found) else {
        return Err(Rejected::Outside { at, len: new.len(), start: at, end: at, why });
    };
    old.copy_from_slice(found);
    if old == new { Ok(()) } else { code.edit(Edit { at, old, new, why }) }
}

/// The largest number of bytes that one record may rewrite: the record's length field is one byte.
pub const MAX_SITE: usize = 255;

#[cfg(test)]
mod tests {
    use super::RecordTable;
    use crate::{Addr, CodeBuffers, PieceKind};

    #[test]
    fn a_part_of_a_table_has_the_numbers_of_the_whole() {
        let mut space = CodeBuffers::default();
        space.add(Addr::new(0x1000), PieceKind::Data, (0..10).collect()).unwrap();
        let whole = RecordTable::of_section(7, Addr::new(0x1000), 10);
        let part = whole.part(2, 2, 4);
        assert_eq!((part.numbers(2), part.at, part.size), (2..4, Addr::new(0x1004), 4));
        assert_eq!(part.record::<2>(&space, 3), Some((Addr::new(0x1006), [6, 7])));
        assert_eq!(part.record::<2>(&space, 1), None);
        // The rest of the table, including an incomplete record at the end, and nothing after it.
        let rest = whole.part(4, 1, u32::MAX);
        assert_eq!((rest.numbers(4), rest.at, rest.size), (1..2, Addr::new(0x1004), 6));
        assert_eq!(whole.part(4, 3, 9).size, 0);
        assert_eq!(rest.part(4, 2, 3), RecordTable { section: 7, first: 2, at: Addr::new(0x1008), size: 2 });
    }
}
