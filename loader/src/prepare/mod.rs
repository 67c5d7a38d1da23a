//! One module in memory, before other modules can see it: laid out, allocated, relocated and rewritten.
//!
//! Owns the policy, the stages *layout*, *allocate*, *copy*, *relocate* and *specialise*, and what later stages need of the file when it is
//! gone: names, parameters, call frames, and what waits for an object of a live patch. A module that other modules use, or a
//! subscriber, is not known here. Imports `vocabulary` and `elf`.

pub(crate) mod error;
pub(crate) mod policy;
pub(crate) mod vague;
pub(crate) mod layout;
pub(crate) mod frames;
pub(crate) mod memory;
pub(crate) mod tables;
pub(crate) mod resolved;
pub(crate) mod relocate;
pub(crate) mod specialise;
pub(crate) mod deferred;
pub(crate) mod names;
pub(crate) mod params;
pub(crate) mod unwind;
pub(crate) mod image;
