//! The code that preserves registers for the call of a slow path.

use std::arch::global_asm;

use modload_edit::Addr;

use crate::trampoline::function::address;

use super::vector_width::VectorWidth;

global_asm!(
    r#"
    .pushsection .text.modload_ftrace_ask, "ax", @progbits
// Calls the function in rdx. The argument and the answer are in rax. All registers except rax, rcx and rdx are
// preserved. The caller has saved rcx and rdx.
.macro modload_ftrace_ask name:req, bytes:req, move:req, register:req
    .balign 16
    .hidden modload_ftrace_ask_\name
    .globl modload_ftrace_ask_\name
    .type modload_ftrace_ask_\name, @function
modload_ftrace_ask_\name:
    .cfi_startproc
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    push rdi
    push rsi
    push r8
    push r9
    push r10
    push r11
    and rsp, -64
    sub rsp, 8 * \bytes
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    \move [rsp + \number * \bytes], \register\number
    .endr
    mov rdi, rax
    call rdx
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    \move \register\number, [rsp + \number * \bytes]
    .endr
    lea rsp, [rbp - 48]
    pop r11
    pop r10
    pop r9
    pop r8
    pop rsi
    pop rdi
    pop rbp
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
    ret
    .cfi_endproc
    .size modload_ftrace_ask_\name, . - modload_ftrace_ask_\name
.endm
    modload_ftrace_ask xmm, 16, movups, xmm
    modload_ftrace_ask ymm, 32, vmovups, ymm
    modload_ftrace_ask zmm, 64, vmovups, zmm
    .popsection
"#
);

unsafe extern "C" {
    static modload_ftrace_ask_xmm: u8;
    static modload_ftrace_ask_ymm: u8;
    static modload_ftrace_ask_zmm: u8;
}

/// Returns the address of the code that preserves vector registers of this width.
pub(in crate::trampoline) fn slow_path_entry(widest: VectorWidth) -> Addr {
    address(match widest {
        VectorWidth::Xmm => &raw const modload_ftrace_ask_xmm,
        VectorWidth::Ymm => &raw const modload_ftrace_ask_ymm,
        VectorWidth::Zmm => &raw const modload_ftrace_ask_zmm,
    })
}
