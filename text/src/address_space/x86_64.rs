//! How far code reaches on x86-64.
//!
//! Another processor has to provide: the addresses that code without -fPIC can use ([`LOW_END`]), and the reach of a
//! call and a jump ([`REACH`]; 128 MiB on aarch64).

use crate::vocabulary::machine::PAGE;

/// The end of the addresses that the code models without -fPIC can reach: below it, the sign bit of a 32-bit field is
/// clear.
pub(crate) const LOW_END: u64 = 0x8000_0000;

/// The greatest distance between two bytes for a 32-bit distance between instructions at them: a page less than 2 GiB,
/// because the distance counts from the instruction's end.
pub(crate) const REACH: u64 = (1 << 31) - PAGE;
