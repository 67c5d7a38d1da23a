//! The code that the kernel and the C library call: the SIGTRAP handler and the fork handlers.
//!
//! Owns the batch that the SIGTRAP handler reads, the emulation of instructions, and the report of a stray call.
//! Imports `vocabulary`, `address_space`, `writing` and `allocation`.

pub(crate) mod batch;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod report;
pub(crate) mod trap;
pub(crate) mod fork;
