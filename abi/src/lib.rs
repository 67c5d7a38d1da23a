//! The contents of a module file: the names of its sections, the layouts of the records in them, and `.modinfo`.
//!
//! Everything is decoded from `&[u8]`, little-endian, field by field. Nothing is transmuted, so the bytes need no
//! alignment. Layouts are those of Linux 6.1 for x86-64 and of the System V ABI for x86-64, version 1.0.

#![forbid(unsafe_code)]

pub mod crel;
pub mod known;
pub mod livepatch;
pub mod modinfo;
pub mod record;
pub mod section;

pub use record::{ExportedSymbol, KernelParam, Records, Rela, Version};
