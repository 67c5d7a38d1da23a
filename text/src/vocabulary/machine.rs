//! Facts about the machine.

/// Size of a page of this machine in bytes.
pub const PAGE: u64 = 4096;

/// `INT3`, which fills text that no thread may run.
pub use modload_edit::INT3;
