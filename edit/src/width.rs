//! `usize` and `u64` have the same width on the only machine this project loads code for. These two functions are
//! the only places that say so.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("modload loads x86-64 code: usize is 64 bits wide");

/// A length or index as a 64-bit quantity. Never loses anything.
#[must_use]
#[inline]
#[expect(clippy::as_conversions, reason = "usize is 64 bits wide, see above; TryFrom would only hide that")]
pub const fn wide(n: usize) -> u64 {
    n as u64
}

/// A 64-bit quantity as a length or index. Never loses anything; whether it is *in range* is for the slice to say.
#[must_use]
#[inline]
#[expect(clippy::as_conversions, reason = "usize is 64 bits wide, see above; TryFrom would only hide that")]
pub const fn index(n: u64) -> usize {
    n as usize
}
