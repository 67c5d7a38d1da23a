//! The state of tracing for the whole process, for assembler code and for Rust.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// The number of the recording under way, or [`NO_SESSION`].
pub(crate) static CURRENT_SESSION: AtomicU32 = AtomicU32::new(NO_SESSION);

/// The number that means: no recording.
pub(crate) const NO_SESSION: u32 = u32::MAX;

/// The size in bytes of the rings of threads that join from now on. A power of two.
pub(crate) static RING_BYTES: AtomicU64 = AtomicU64::new(1 << 20);

/// The number of calls from within the tracing itself, in the whole process.
pub(crate) static NESTED_CALLS: AtomicU64 = AtomicU64::new(0);

/// The number of calls of threads that cannot join: they are on another stack than their own, are ending, or there is
/// no memory.
pub(crate) static UNATTACHED_CALLS: AtomicU64 = AtomicU64::new(0);

/// The address of the code that calls one of the four slow paths (`slow_path.rs`) and preserves the registers that a function may
/// need.
pub(super) static SLOW_PATH: AtomicU64 = AtomicU64::new(0);

/// The addresses of the four slow paths. They are variables, so that the assembler code need not import the functions, which import
/// the code.
pub(super) static REPORT_EVENT: AtomicU64 = AtomicU64::new(0);
pub(super) static JOIN_FOR_CALL: AtomicU64 = AtomicU64::new(0);
pub(super) static PREPARE_FOR_ENTRY: AtomicU64 = AtomicU64::new(0);
pub(super) static HANDLE_RETURN: AtomicU64 = AtomicU64::new(0);
