//! The address space of the process: the mappings, the reserved ranges, and pages without the allocator.
//!
//! Owns the system calls that map and unmap memory. Knows no lock and no arena. Imports `vocabulary`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod pointer;
pub(crate) mod maps;
pub(crate) mod room;
pub(crate) mod reserve;
pub(crate) mod pages;
