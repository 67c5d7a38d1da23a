//! The instruction that makes a system call.

use std::arch::asm;

/// Makes one system call. Returns the kernel's result, in which an error is a negated number.
///
/// # Safety
///
/// As for the system call: pointers among the arguments are valid for the kernel's accesses.
pub(crate) unsafe fn system_call(number: libc::c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: this is the kernel's calling convention on x86-64: rcx and r11 are lost, the stack is not touched. The
    // caller promises that the call's effects on memory are sound.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
