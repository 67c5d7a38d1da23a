//! The referee: what GNU `as` assembles and GNU `ld` links at fixed addresses is what this crate must make of the same
//! object at the same addresses, byte for byte.
//!
//! - `fixtures`: every `tests/fixtures/*.s`, each with its link and its expectation in its first lines.
//! - `bounds`: for every row narrower than 64 bits, the values that just fit and those that are one too far.
//! - `plt`: calls that are out of reach, against a shared library's `.plt.got`.
//!
//! The two tools are part of binutils, which every machine with a C compiler has; without them the tests fail.

mod bounds;
mod fixtures;
mod module;
mod plt;
mod tools;
