//! The terms that all other folders use: facts about the machine, classes of memory, errors, and the protocols of a
//! batch.
//!
//! Owns types that need nothing else of this crate. Imports no other folder.

pub(crate) mod machine;
pub(crate) mod class;
pub(crate) mod error;
pub(crate) mod poked;
pub(crate) mod poke_error;
