//! The shadow stack of x86-64, which an emulated call or return would leave unchanged.
//!
//! Another processor has to provide the same answer for its own protection of return addresses ([`has_shadow_stack`]);
//! on aarch64, the guarded control stack.

/// arch_prctl(2), <asm/prctl.h>, since Linux 6.6.
const ARCH_SHSTK_STATUS: libc::c_int = 0x5005;
/// The bit of the status for "on".
const ARCH_SHSTK_SHSTK: u64 = 1;

/// Returns whether this thread has a shadow stack (`ARCH_SHSTK_STATUS`). The C library gives one to all threads or to
/// none.
#[must_use]
pub fn has_shadow_stack() -> bool {
    let mut features = 0_u64;
    // SAFETY: the call writes eight bytes to a local variable, or fails: on kernels without the call, and without the
    // hardware.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SHSTK_STATUS, &raw mut features) };
    failed == 0 && features & ARCH_SHSTK_SHSTK != 0
}
