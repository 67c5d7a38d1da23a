//! Memory for modules, from taking a range to freeing it.
//!
//! Owns the arena with its stripes, staged and published text, data, and the owner of each range of text. Imports
//! `vocabulary`, `address_space` and `writing`.

pub(crate) mod stripe;
pub(crate) mod owners;
pub(crate) mod arena;
pub(crate) mod data;
pub(crate) mod staging;
pub(crate) mod variables;
