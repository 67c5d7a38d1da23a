//! Compares this crate with GNU binutils: an object assembled by `as` and relocated by this crate must have the same
//! bytes as after GNU `ld` has linked it at the same addresses.
//!
//! - `fixtures`: every `tests/fixtures/*.s`, each with its link options and expectations in its first lines.
//! - `bounds`: for every row narrower than 64 bits, the last values that fit and the first that do not.
//! - `plt`: calls that are out of reach, compared with `.plt.got` of a shared library.
//!
//! Every machine with a C compiler has binutils. Without `as` and `ld` the tests fail.

mod bounds;
mod fixtures;
mod module;
mod plt;
mod tools;
