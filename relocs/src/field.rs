//! The field that takes a relocated value, and the only overflow check of this crate.

/// The width and the signedness of the field at a place. The ranges are those of GNU ld.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelocField {
    /// No field: nothing is written.
    Nowhere,
    /// Eight bytes. Every value fits.
    I64,
    /// Four bytes, zero-extended when they are read.
    U32,
    /// Four bytes, sign-extended when they are read.
    I32,
    /// Two bytes that the code may read as signed or unsigned: -2^16 to 2^16 - 1.
    Bits16,
    /// One byte that the code may read as signed or unsigned: -2^8 to 2^8 - 1.
    Bits8,
    /// One byte, sign-extended when it is read.
    I8,
}

/// A value that does not fit, and its distance from the range of the field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Beyond {
    /// The value, read with the signedness of the field.
    pub(crate) value: i128,
    /// The distance from the nearest value that fits.
    pub(crate) by: u64,
}

impl RelocField {
    /// Returns the width in bytes.
    #[must_use]
    #[inline]
    pub const fn width(self) -> u8 {
        match self {
            RelocField::Nowhere => 0,
            RelocField::Bits8 | RelocField::I8 => 1,
            RelocField::Bits16 => 2,
            RelocField::U32 | RelocField::I32 => 4,
            RelocField::I64 => 8,
        }
    }

    /// Returns the width in bits.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u32 {
        match self.width() {
            0 => 0,
            1 => 8,
            2 => 16,
            4 => 32,
            _ => 64,
        }
    }

    /// Returns the smallest and the largest value that fit.
    #[must_use]
    #[inline]
    pub const fn range(self) -> (i64, i64) {
        match self {
            RelocField::Nowhere | RelocField::I64 => (i64::MIN, i64::MAX),
            RelocField::U32 => (0, 0xffff_ffff),
            RelocField::I32 => (-0x8000_0000, 0x7fff_ffff),
            RelocField::Bits16 => (-0x1_0000, 0xffff),
            RelocField::Bits8 => (-0x100, 0xff),
            RelocField::I8 => (-0x80, 0x7f),
        }
    }

    /// Returns whether `value` fits. `value` is the result of 64-bit arithmetic that wraps.
    #[must_use]
    #[inline]
    pub const fn fits(self, value: i64) -> bool {
        let (min, max) = self.range();
        value.wrapping_sub(min).cast_unsigned() <= max.wrapping_sub(min).cast_unsigned()
    }

    /// Returns the distance between a `value` that does not fit and the range of this field.
    #[cold]
    pub(crate) fn beyond(self, value: i64) -> Beyond {
        let (min, max) = self.range();
        if min == 0 {
            let unsigned = value.cast_unsigned();
            return Beyond { value: i128::from(unsigned), by: unsigned.saturating_sub(max.cast_unsigned()) };
        }
        let by = if value < min { min.abs_diff(value) } else { value.abs_diff(max) };
        Beyond { value: i128::from(value), by }
    }
}

#[cfg(test)]
mod tests {
    use super::{Beyond, RelocField};

    #[test]
    fn the_bounds_fit_and_their_neighbours_do_not() {
        for field in [RelocField::U32, RelocField::I32, RelocField::Bits16, RelocField::Bits8, RelocField::I8] {
            let (min, max) = field.range();
            assert!(field.fits(min) && field.fits(max) && field.fits(0), "{field:?}");
            assert!(!field.fits(min - 1) && !field.fits(max + 1), "{field:?}");
            assert!(!field.fits(i64::MIN) && !field.fits(i64::MAX), "{field:?}");
            assert_eq!(field.beyond(max + 1).by, 1, "{field:?}");
        }
        assert!(RelocField::I64.fits(i64::MIN) && RelocField::I64.fits(i64::MAX));
    }

    #[test]
    fn the_distance_is_counted_from_the_nearer_end() {
        assert_eq!(RelocField::I32.beyond(-0x8000_0001), Beyond { value: -0x8000_0001, by: 1 });
        assert_eq!(RelocField::I32.beyond(0x1_0000_0010), Beyond { value: 0x1_0000_0010, by: 0x8000_0011 });
        assert_eq!(RelocField::U32.beyond(-1), Beyond { value: 0xffff_ffff_ffff_ffff, by: 0xffff_ffff_0000_0000 });
        assert_eq!(RelocField::I32.beyond(i64::MIN).by, 0x7fff_ffff_8000_0000);
    }
}
