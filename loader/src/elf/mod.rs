//! Object files as bytes: linked, validated, and read.
//!
//! Owns the stages *link*, *validate* and *modinfo*, and the checked [`File`](file::File) that all later stages read. Knows no address, no
//! memory and no host. Imports `vocabulary`.

pub(crate) mod error;
pub(crate) mod file;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod link;
pub(crate) mod validate;
pub(crate) mod modinfo;
pub(crate) mod sections;
