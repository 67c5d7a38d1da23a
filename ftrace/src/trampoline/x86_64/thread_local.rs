//! Twenty-four bytes of static thread-local memory.

use std::arch::global_asm;
use std::ffi::c_void;

global_asm!(
    r#"
    .pushsection .tbss.modload_ftrace_thread, "awT", @nobits
    .balign 8
    .hidden modload_ftrace_thread
    .globl modload_ftrace_thread
    .type modload_ftrace_thread, @object
    .size modload_ftrace_thread, 24
modload_ftrace_thread:
    .zero 24
    .popsection

    .pushsection .text.modload_ftrace_local, "ax", @progbits
    .balign 16
    .hidden modload_ftrace_local
    .globl modload_ftrace_local
    .type modload_ftrace_local, @function
modload_ftrace_local:
    .cfi_startproc
    mov rax, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    add rax, qword ptr fs:[0]
    ret
    .cfi_endproc
    .size modload_ftrace_local, . - modload_ftrace_local
    .popsection
"#
);

unsafe extern "C" {
    /// Returns the address of the twenty-four bytes of this thread.
    #[link_name = "modload_ftrace_local"]
    pub(in crate::trampoline) safe fn local_address() -> *const c_void;
}
