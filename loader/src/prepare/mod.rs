//! One module in memory, before other modules can see the module: laid out, allocated, relocated and rewritten.
//!
//! Owns the policy, the stages *layout*, *allocate*, *copy*, *relocate* and *specialise*, and copies of file contents
//! for later stages: names, parameters, call frames, and the parts that wait for an object of a live patch. Knows no
//! other module and no subscriber. Imports `vocabulary` and `elf`.

pub(crate) mod error;
pub(crate) mod policy;
pub(crate) mod vague;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod layout;
pub(crate) mod frames;
pub(crate) mod memory;
pub(crate) mod tables;
pub(crate) mod resolved;
pub(crate) mod thread_local;
pub(crate) mod relocate;
pub(crate) mod specialise;
pub(crate) mod deferred;
pub(crate) mod names;
pub(crate) mod params;
pub(crate) mod program;
pub(crate) mod unwind;
pub(crate) mod image;
