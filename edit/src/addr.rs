//! The type of an address.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// An address in the address space of a module, which need not be the address space of this process.
///
/// `Addr - Addr` is an `i64`, `Addr + u64` is an `Addr`. Both wrap, as address arithmetic on x86-64 does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr(u64);

impl Addr {
    /// The address zero: the address of a weak symbol without a definition.
    pub const NULL: Addr = Addr(0);

    /// Makes an address of this value.
    #[must_use]
    #[inline]
    pub const fn new(value: u64) -> Addr {
        Addr(value)
    }

    /// Returns the address as a number.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns this address moved by a signed distance. Wraps.
    #[must_use]
    #[inline]
    pub const fn offset(self, by: i64) -> Addr {
        Addr(self.0.wrapping_add_signed(by))
    }

    /// Returns the next address that is a multiple of `align`, which must be a power of two. Returns `None` past the
    /// end of the address space.
    #[must_use]
    #[inline]
    pub const fn align_up(self, align: u64) -> Option<Addr> {
        match self.0.checked_next_multiple_of(align) {
            Some(value) => Some(Addr(value)),
            None => None,
        }
    }

    /// Returns the distance from `base` to this address, or `None` if this address lies before `base`.
    #[must_use]
    #[inline]
    pub const fn checked_offset_from(self, base: Addr) -> Option<u64> {
        self.0.checked_sub(base.0)
    }
}

impl Add<u64> for Addr {
    type Output = Addr;
    #[inline]
    fn add(self, by: u64) -> Addr {
        Addr(self.0.wrapping_add(by))
    }
}

impl AddAssign<u64> for Addr {
    #[inline]
    fn add_assign(&mut self, by: u64) {
        *self = *self + by;
    }
}

impl Sub for Addr {
    type Output = i64;
    #[inline]
    fn sub(self, other: Addr) -> i64 {
        self.0.wrapping_sub(other.0).cast_signed()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Addr;

    #[test]
    fn a_difference_is_signed_and_wraps() {
        assert_eq!(Addr::new(0x10) - Addr::new(0x18), -8);
        assert_eq!(Addr::new(0) - Addr::new(u64::MAX), 1);
        assert_eq!(Addr::new(0x10).offset(-0x10), Addr::NULL);
    }

    #[test]
    fn alignment_stops_at_the_end_of_the_space() {
        assert_eq!(Addr::new(0x11).align_up(16), Some(Addr::new(0x20)));
        assert_eq!(Addr::new(0x20).align_up(16), Some(Addr::new(0x20)));
        assert_eq!(Addr::new(u64::MAX).align_up(16), None);
    }
}
