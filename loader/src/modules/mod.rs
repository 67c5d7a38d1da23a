//! The modules of a host, like Linux's list `modules`: registry, references, subscribers and timeline.
//!
//! Owns the state that threads share: users and providers of symbols, waiting loads, the chains, and the memory of
//! unloaded modules whose text still has a thread inside. Imports `vocabulary`, `elf` and `prepare`.

pub(crate) mod error;
pub(crate) mod uses;
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
