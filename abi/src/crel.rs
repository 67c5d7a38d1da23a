//! CREL, the compact form of relocations that LLVM's assembler writes with `--crel`
//! (<https://maskray.me/blog/2024-03-09-a-compact-relocation-format-for-elf>). Numbers are LEB128. Each record holds
//! only the differences from the record before.

use std::fmt;

use crate::Rela;

/// Why a section of compact relocations cannot be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrelError {
    /// The section ends within a record.
    CutOff,
    /// Bytes follow the last record.
    Trailing,
    /// The header announces more records than the section has bytes.
    Count(u64),
    /// A number has more than 64 bits.
    TooWide,
}

impl fmt::Display for CrelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CrelError::CutOff => f.write_str("it ends within a record"),
            CrelError::Trailing => f.write_str("bytes are left behind its last record"),
            CrelError::Count(count) => write!(f, "it says that it holds {count} records, more than it has bytes"),
            CrelError::TooWide => f.write_str("a number in it has more than 64 bits"),
        }
    }
}

impl std::error::Error for CrelError {}

/// A position in the section, which moves forward.
struct CrelCursor<'a> {
    rest: &'a [u8],
}

impl CrelCursor<'_> {
    fn byte(&mut self) -> Result<u8, CrelError> {
        let (first, rest) = self.rest.split_first().ok_or(CrelError::CutOff)?;
        self.rest = rest;
        Ok(*first)
    }

    /// Reads an unsigned LEB128 number. Bits above the 64th must be zero.
    fn unsigned(&mut self) -> Result<u64, CrelError> {
        let (mut value, mut shift) = (0_u64, 0_u32);
        loop {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let placed = bits.checked_shl(shift).filter(|placed| placed >> shift == bits);
            value |= placed.or((bits == 0).then_some(0)).ok_or(CrelError::TooWide)?;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift = shift.saturating_add(7);
        }
    }

    /// Reads a signed LEB128 number, in two's complement.
    fn signed(&mut self) -> Result<u64, CrelError> {
        let (mut value, mut shift) = (0_u64, 0_u32);
        loop {
            let byte = self.byte()?;
            if shift >= u64::BITS {
                return Err(CrelError::TooWide);
            }
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                let sign = if byte & 0x40 != 0 { u64::MAX.checked_shl(shift).unwrap_or(0) } else { 0 };
                return Ok(value | sign);
            }
        }
    }
}

/// Returns the relocations of a section of type SHT_CREL.
///
/// # Errors
/// [`CrelError`].
pub fn decode(section: &[u8]) -> Result<Vec<Rela>, CrelError> {
    let mut cursor = CrelCursor { rest: section };
    let header = cursor.unsigned()?;
    let (count, has_addends, shift) = (header >> 3, header & 4 != 0, header & 3);
    // The first byte of a record holds two or three flags, and above them the low bits of the offset.
    let flags = if has_addends { 3 } else { 2 };
    // A record takes at least one byte.
    if usize::try_from(count).ok().is_none_or(|count| count > cursor.rest.len()) {
        return Err(CrelError::Count(count));
    }
    let mut relas = Vec::new();
    let (mut offset, mut symbol, mut kind, mut addend) = (0_u64, 0_u64, 0_u64, 0_u64);
    for _ in 0..count {
        let first = cursor.byte()?;
        let low = u64::from(first & 0x7f) >> flags;
        let high = if first & 0x80 != 0 { cursor.unsigned()?.wrapping_shl(7 - flags) } else { 0 };
        offset = offset.wrapping_add(high).wrapping_add(low);
        if first & 1 != 0 {
            symbol = symbol.wrapping_add(cursor.signed()?);
        }
        if first & 2 != 0 {
            kind = kind.wrapping_add(cursor.signed()?);
        }
        if has_addends && first & 4 != 0 {
            addend = addend.wrapping_add(cursor.signed()?);
        }
        let narrow = |number: u64| u32::try_from(number).map_err(|_| CrelError::TooWide);
        relas.push(Rela {
            offset: offset.wrapping_shl(u32::try_from(shift).unwrap_or(0)),
            kind: narrow(kind)?,
            symbol: narrow(symbol)?,
            addend: addend.cast_signed(),
        });
    }
    if cursor.rest.is_empty() { Ok(relas) } else { Err(CrelError::Trailing) }
}

#[cfg(test)]
mod tests {
    use super::{CrelError, decode};
    use crate::Rela;

    #[test]
    fn each_record_says_what_changes() {
        // Three records with addends, offsets divided by 4.
        let section = [
            3 << 3 | 4 | 2,         // header
            1 << 3 | 0b111,         // offset 1, symbol, kind, addend
            2,                      // symbol 2
            4,                      // kind 4
            0x7c,                   // addend -4
            2 << 3,                 // offset 1 + 2, all else as before
            0x80 | 15 << 3 | 0b101, // low bits of the offset 15, symbol, addend; more of the offset follows
            1,                      // 1 << 4
            0x7f,                   // symbol 2 - 1
            0xe4,                   // addend -4 + 100, in two bytes
            0,
        ];
        let rela = |offset, kind, symbol, addend| Rela { offset, kind, symbol, addend };
        let expected = vec![rela(4, 4, 2, -4), rela(12, 4, 2, -4), rela((3 + 15 + 16) * 4, 4, 1, 96)];
        assert_eq!(decode(&section), Ok(expected));
    }

    #[test]
    fn what_is_no_section_of_relocations_is_named() {
        for (section, problem) in [
            (&[][..], CrelError::CutOff),
            (&[0x80], CrelError::CutOff),
            (&[1 << 3 | 4, 1], CrelError::CutOff),
            (&[2 << 3, 0], CrelError::Count(2)),
            (&[1 << 3, 0, 0], CrelError::Trailing),
            (&[0, 0], CrelError::Trailing),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], CrelError::TooWide),
            (&[1 << 3, 1, 0x7f], CrelError::TooWide), // symbol -1
        ] {
            assert_eq!(decode(section), Err(problem), "{section:x?}");
        }
        assert_eq!(decode(&[0]), Ok(Vec::new()));
    }
}
