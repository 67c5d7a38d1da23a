//! The registers of a thread that a signal has interrupted.

use std::arch::x86_64::__cpuid;
use std::ffi::c_int;

/// The instruction pointer, the stack pointer and the frame pointer, by the C library's numbers.
pub(crate) const INSTRUCTION_POINTER: c_int = libc::REG_RIP;
pub(crate) const STACK_POINTER: c_int = libc::REG_RSP;
pub(crate) const FRAME_POINTER: c_int = libc::REG_RBP;

/// The DWARF number of rax, in which a landing pad gets the exception (psABI, table 3.36; gcc's
/// `__builtin_eh_return_data_regno(0)`).
pub(crate) const EXCEPTION_REGISTER: c_int = 0;

/// The DWARF numbers of rdi, rsi, rdx, r10, r8 and r9: the registers of a system call's arguments.
pub(crate) const CALL_ARGUMENTS: [u16; 6] = [5, 4, 1, 10, 8, 9];

/// Returns a general register, by the C library's number (`libc::REG_RAX`). Returns `None` if there is no register of
/// that number.
pub(crate) fn register(context: &libc::ucontext_t, number: c_int) -> Option<u64> {
    let place = usize::try_from(number).ok()?;
    context.uc_mcontext.gregs.get(place).map(|register| register.cast_unsigned())
}

/// Changes the address at which a thread resumes.
pub(crate) fn set_rip(context: &mut libc::ucontext_t, rip: u64) -> bool {
    // REG_RIP is a small positive constant of the C library.
    let place = usize::try_from(INSTRUCTION_POINTER).ok().and_then(|at| context.uc_mcontext.gregs.get_mut(at));
    place.is_some_and(|place| {
        *place = rip.cast_signed();
        true
    })
}

/// Returns whether the signal found the thread directly behind a system call with this error. Behind a `syscall`
/// instruction, rcx equals rip, which is rare behind any other instruction. If a call is to be restarted, rip is in
/// front of the instruction.
pub(crate) fn call_has_failed(context: &libc::ucontext_t, error: c_int) -> bool {
    let result = register(context, libc::REG_RAX).map(u64::cast_signed);
    register(context, libc::REG_RCX) == register(context, INSTRUCTION_POINTER) && result == Some(-i64::from(error))
}

/// Serialises this core: changed instructions are fetched again.
pub(crate) fn serialise_core() {
    let _ = __cpuid(0);
}
