//! The modules of a host, as Linux's list `modules` has them: their registry, their references, their subscribers and their timeline.
//!
//! Owns the state that is shared between threads: who uses whom, who waits for whom, who is told of what, and the memory of modules
//! that have gone while a thread was in their text. Imports `vocabulary`, `elf` and `prepare`.

pub(crate) mod error;
pub(crate) mod registry;
pub(crate) mod module;
pub(crate) mod coming;
pub(crate) mod timeline;
pub(crate) mod recorder;
pub(crate) mod subscriber;
pub(crate) mod chains;
pub(crate) mod entry;
pub(crate) mod boundary;
pub(crate) mod inside;
pub(crate) mod quarantine;
pub(crate) mod fork;
