//! Static keys: `modload/jump_label.h` for Rust.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};

/// A static key: `struct static_key`. Must be a `static`, because the macros use its symbol.
///
/// A key of another module or of the host is declared as: `unsafe extern "C" { safe static their_key: StaticKey; }`.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct StaticKey {
    enabled: AtomicI32,
    _reserved: [i32; 3],
}

unsafe extern "C" {
    safe fn static_key_enable(key: *const StaticKey) -> c_int;
    safe fn static_key_disable(key: *const StaticKey) -> c_int;
    safe fn static_key_slow_inc(key: *const StaticKey) -> c_int;
    safe fn static_key_slow_dec(key: *const StaticKey) -> c_int;
}

/// Converts a status: 0 is success, any other value is a negative error number.
#[inline(always)]
fn outcome(status: c_int) -> Result<(), i32> {
    if status == 0 { Ok(()) } else { Err(status.wrapping_neg()) }
}

impl StaticKey {
    /// Makes a key with the count 0.
    pub const fn disabled() -> StaticKey {
        StaticKey { enabled: AtomicI32::new(0), _reserved: [0; 3] }
    }

    /// Makes a key with the count 1.
    pub const fn enabled() -> StaticKey {
        StaticKey { enabled: AtomicI32::new(1), _reserved: [0; 3] }
    }

    /// Returns whether the count is not 0.
    #[inline(always)]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire) > 0
    }

    /// Enables the key: a count of 0 becomes 1.
    ///
    /// # Errors
    /// The error number. The key is unchanged then.
    #[inline(always)]
    pub fn enable(&'static self) -> Result<(), i32> {
        outcome(static_key_enable(ptr::from_ref(self)))
    }

    /// Disables the key if its count is 1.
    ///
    /// # Errors
    /// [`EINVAL`](crate::EINVAL) if the count is greater than 1. The key is unchanged then.
    #[inline(always)]
    pub fn disable(&'static self) -> Result<(), i32> {
        outcome(static_key_disable(ptr::from_ref(self)))
    }

    /// Increments the count.
    ///
    /// # Errors
    /// The error number. The key is unchanged then.
    #[inline(always)]
    pub fn increment(&'static self) -> Result<(), i32> {
        outcome(static_key_slow_inc(ptr::from_ref(self)))
    }

    /// Decrements the count.
    ///
    /// # Errors
    /// [`EINVAL`](crate::EINVAL) if the count is 0. The key is unchanged then.
    #[inline(always)]
    pub fn decrement(&'static self) -> Result<(), i32> {
        outcome(static_key_slow_dec(ptr::from_ref(self)))
    }
}

/// Tests whether a static key is enabled. Costs a NOP while the key is disabled: for keys that are seldom enabled. The
/// argument is the path of the key.
#[macro_export]
macro_rules! static_branch_unlikely {
    ($key:path) => {
        $crate::static_branch!($key, 0, false)
    };
}

/// Tests whether a static key is enabled. Costs a NOP while the key is enabled: for keys that are mostly enabled. The
/// argument is the path of the key.
#[macro_export]
macro_rules! static_branch_likely {
    ($key:path) => {
        $crate::static_branch!($key, 1, true)
    };
}
