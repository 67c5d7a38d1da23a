//! The parts that belong to the process as a whole: the creation of its arena, and code of the host itself.
//!
//! Owns `Arena::get`, registered text of the host, and annexes. Imports all other folders but `change`.

pub(crate) mod create;
pub(crate) mod host_text;
pub(crate) mod annex;
