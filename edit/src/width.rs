//! `usize` and `u64` have the same width on x86-64, the only machine for which this project loads code. Only these two
//! functions rely on this fact.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("modload loads x86-64 code: usize is 64 bits wide");

/// Converts a length or an index to 64 bits. The conversion is exact.
#[must_use]
#[inline]
#[expect(clippy::as_conversions, reason = "usize is 64 bits wide, see above; TryFrom would only hide that")]
pub const fn wide(n: usize) -> u64 {
    n as u64
}

/// Converts a 64-bit number to a length or an index. The conversion is exact. The slice that is indexed checks the
/// range.
#[must_use]
#[inline]
#[expect(clippy::as_conversions, reason = "usize is 64 bits wide, see above; TryFrom would only hide that")]
pub const fn index(n: u64) -> usize {
    n as usize
}
