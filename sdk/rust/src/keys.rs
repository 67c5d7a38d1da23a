//! Static keys: `modload/jump_label.h` for Rust.

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};

/// A static key: `struct static_key`. It is a `static`; the macros name it.
///
/// A key of another module, or of the host, is declared:
/// `unsafe extern "C" { safe static their_key: StaticKey; }`.
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

/// 0 is well; everything else is a negative error number.
#[inline(always)]
fn outcome(status: c_int) -> Result<(), i32> {
    if status == 0 { Ok(()) } else { Err(status.wrapping_neg()) }
}

impl StaticKey {
    /// A key whose count is 0.
    pub const fn disabled() -> StaticKey {
        StaticKey { enabled: AtomicI32::new(0), _reserved: [0; 3] }
    }

    /// A key whose count is 1.
    pub const fn enabled() -> StaticKey {
        StaticKey { enabled: AtomicI32::new(1), _reserved: [0; 3] }
    }

    /// Whether its count is not 0.
    #[inline(always)]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire) > 0
    }

    /// Enables it: its count becomes 1 if it was 0.
    ///
    /// # Errors
    /// The error number; the key is as it was.
    #[inline(always)]
    pub fn enable(&'static self) -> Result<(), i32> {
        outcome(static_key_enable(ptr::from_ref(self)))
    }

    /// Disables it, if its count is 1.
    ///
    /// # Errors
    /// [`EINVAL`](crate::EINVAL) if others have counted it up; the key is as it was.
    #[inline(always)]
    pub fn disable(&'static self) -> Result<(), i32> {
        outcome(static_key_disable(ptr::from_ref(self)))
    }

    /// Counts it up.
    ///
    /// # Errors
    /// The error number; the key is as it was.
    #[inline(always)]
    pub fn increment(&'static self) -> Result<(), i32> {
        outcome(static_key_slow_inc(ptr::from_ref(self)))
    }

    /// Counts it down.
    ///
    /// # Errors
    /// [`EINVAL`](crate::EINVAL) if its count is 0; the key is as it was.
    #[inline(always)]
    pub fn decrement(&'static self) -> Result<(), i32> {
        outcome(static_key_slow_dec(ptr::from_ref(self)))
    }
}

/// Whether a static key is enabled, at the price of a NOP if it is not: for what seldom is. The key is named by its path.
#[macro_export]
macro_rules! static_branch_unlikely {
    ($key:path) => {
        $crate::static_branch!($key, 0, false)
    };
}

/// Whether a static key is enabled, at the price of a NOP if it is: for what mostly is. The key is named by its path.
#[macro_export]
macro_rules! static_branch_likely {
    ($key:path) => {
        $crate::static_branch!($key, 1, true)
    };
}

/// A site, which is a NOP for `$straight` and a jump for its opposite, and its record in `__jump_table`.
#[doc(hidden)]
#[macro_export]
macro_rules! static_branch {
    ($key:path, $likely:literal, $straight:literal) => {
        'branch: {
            // SAFETY: a NOP and a record of it; what the loader makes of the NOP jumps to the label or is a NOP again.
            unsafe {
                ::core::arch::asm!(
                    "1: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
                    ".pushsection __jump_table, \"a\", @progbits",
                    ".balign 8",
                    ".long 1b - .",
                    ".long {jumped} - .",
                    concat!(".quad {key} + ", $likely, " - ."),
                    ".popsection",
                    key = sym $key,
                    jumped = label { break 'branch !$straight },
                    options(att_syntax, nomem, nostack, preserves_flags),
                );
            }
            $straight
        }
    };
}
