//! The code that calls a function on another stack.

use std::arch::global_asm;
use std::ffi::c_void;

use modload_threads::frames::{Register, Registers};

/// The registers in the order in which the code below stores them, by their DWARF numbers.
const WRITTEN: [usize; 8] = [16, 7, 6, 3, 12, 13, 14, 15];

// rdi: the function's argument; rsi: the function; rdx: the end of its stack. The function also gets the registers of
// the caller.
global_asm!(
    r#"
    .pushsection .text.modload_ftrace_aside, "ax", @progbits
    .balign 16
    .hidden modload_ftrace_aside
    .globl modload_ftrace_aside
    .type modload_ftrace_aside, @function
modload_ftrace_aside:
    .cfi_startproc
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    and rdx, -16
    lea rax, [rdx - 64]
    mov rcx, qword ptr [rbp + 8]
    mov qword ptr [rax], rcx
    lea rcx, [rbp + 16]
    mov qword ptr [rax + 8], rcx
    mov rcx, qword ptr [rbp]
    mov qword ptr [rax + 16], rcx
    mov qword ptr [rax + 24], rbx
    mov qword ptr [rax + 32], r12
    mov qword ptr [rax + 40], r13
    mov qword ptr [rax + 48], r14
    mov qword ptr [rax + 56], r15
    mov rcx, rsi
    mov rsi, rax
    mov rsp, rax
    call rcx
    mov rsp, rbp
    pop rbp
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
    ret
    .cfi_endproc
    .size modload_ftrace_aside, . - modload_ftrace_aside
    .popsection
"#
);

unsafe extern "C" {
    /// Calls `function` with `data`, and with the registers of the caller, on the stack that ends at `stack`.
    pub(in crate::trampoline) fn modload_ftrace_aside(
        data: *mut c_void,
        function: unsafe extern "C" fn(*mut c_void, *const [u64; 8]),
        stack: *mut u8,
    );
}

/// Returns the registers that the code above has stored.
pub(in crate::trampoline) fn registers_of(values: [u64; 8]) -> Registers {
    let written = WRITTEN.into_iter().zip(values);
    written.fold(Registers::unknown(), |registers, (number, value)| registers.with(Register::ALL[number], value))
}
