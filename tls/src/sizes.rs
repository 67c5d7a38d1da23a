//! The sizes of the memory that each thread has.

/// The size of a table in bytes: one address for each number.
pub(crate) const TABLE_SIZE: usize = 64 << 10;
/// The size of the reserve in bytes.
pub(crate) const RESERVE_SIZE: usize = if cfg!(feature = "large-static-tls") { 64 << 10 } else { 8 << 10 };
/// The alignment of the reserve, which is the largest of a block in it: the psABI aligns the thread pointer no further.
pub(crate) const RESERVE_ALIGN: usize = 64;
