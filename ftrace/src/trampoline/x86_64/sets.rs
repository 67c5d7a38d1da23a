//! Calls tracers: saves the registers that may hold arguments, calls a callback with its own word, the function and the
//! call's origin, and restores the registers.

use std::arch::global_asm;
use std::mem::offset_of;

use modload_edit::Addr;

use crate::trampoline::function::{FunctionRecord, TracerSet, address};
use crate::trampoline::process_state::NESTED_CALLS;
use crate::trampoline::thread_local::{BUSY, RUNNING};
use crate::trampoline::variants::{AfterTracers, SavedRegisters, SiteBranch};

use super::vector_width::VectorWidth;

// There is one piece of code for each width, each `SavedRegisters` and each `AfterTracers`. `NAME_jump` is entered with
// only the return address on the stack. The frame is that of a function which the traced function has called: `rbp` is
// its base, and its return address is the address at which the traced function continues. A thread first notes that it
// is in a set, and then notes in which set. So if a check of the thread finds neither note, the thread will read the
// function's present set.
global_asm!(
    r#"
.macro modload_ftrace_set name:req, bytes:req, move:req, register:req, all:req, then:req
    .balign 16
    .hidden modload_ftrace_\name\()_jump
    .globl modload_ftrace_\name\()_jump
    .type modload_ftrace_\name\()_jump, @function
modload_ftrace_\name\()_jump:
    .cfi_startproc
    .cfi_def_cfa rsp, 0
    // rip is at [r11 + {target}]: DW_CFA_expression, DW_OP_breg11.
    .cfi_escape 0x10, 0x10, 0x02, 0x7b, {target}
    push qword ptr [r11 + {target}]
    .cfi_def_cfa_offset 8
    .cfi_offset rip, -8
    .hidden modload_ftrace_\name
    .globl modload_ftrace_\name
modload_ftrace_\name:
    push rbp
    .cfi_def_cfa_offset 16
    .cfi_offset rbp, -16
    mov rbp, rsp
    .cfi_def_cfa_register rbp
    push r11
    push rax
    mov rax, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    cmp dword ptr fs:[rax + {busy}], 0
    jne 8f
    mov dword ptr fs:[rax + {busy}], 1
    mov rax, qword ptr [r11 + {set}]
    test rax, rax
    jz 7f
    push rax
    push rdi
    push rsi
    push rdx
    push rcx
    push r8
    push r9
    push r10
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov qword ptr fs:[rcx + {running}], rax
    .if \all
    push rbx
    push r12
    push r13
    push r14
    push r15
    pushfq
    mov rcx, rsp
    .else
    xor ecx, ecx
    .endif
    // A compiler need not align the stack for callees that it knows to need no alignment.
    sub rsp, 8 * \bytes
    and rsp, -64
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    \move [rsp + \number * \bytes], \register\number
    .endr
    mov rdi, qword ptr [rax + {data}]
    mov rsi, r11
    mov rdx, qword ptr [rbp + 16]
    call qword ptr [rax + {call}]
    test rax, rax
    jz 6f
    mov qword ptr [rbp + 8], rax
6:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7
    \move \register\number, [rsp + \number * \bytes]
    .endr
    lea rsp, [rbp - 80]
    pop r10
    pop r9
    pop r8
    pop rcx
    pop rdx
    pop rsi
    pop rdi
    pop rax
7:
    mov rax, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov qword ptr fs:[rax + {running}], 0
    mov dword ptr fs:[rax + {busy}], 0
    pop rax
    pop r11
    .cfi_remember_state
    pop rbp
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
    \then
8:
    .cfi_restore_state
    lock inc qword ptr [rip + {nested}]
    pop rax
    pop r11
    pop rbp
    .cfi_def_cfa rsp, 8
    .cfi_restore rbp
    ret
    .cfi_endproc
    .size modload_ftrace_\name\()_jump, . - modload_ftrace_\name\()_jump
.endm

.macro modload_ftrace_sets name:req, bytes:req, move:req, register:req
    modload_ftrace_set \name\()_args, \bytes, \move, \register, 0, "ret"
    modload_ftrace_set \name\()_all, \bytes, \move, \register, 1, "ret"
    modload_ftrace_set \name\()_args_record, \bytes, \move, \register, 0, "jmp modload_ftrace_record"
    modload_ftrace_set \name\()_all_record, \bytes, \move, \register, 1, "jmp modload_ftrace_record"
    modload_ftrace_set \name\()_args_graph, \bytes, \move, \register, 0, "jmp modload_ftrace_graph_behind"
    modload_ftrace_set \name\()_all_graph, \bytes, \move, \register, 1, "jmp modload_ftrace_graph_behind"
.endm

    .pushsection .text.modload_ftrace_sets, "ax", @progbits
    modload_ftrace_sets xmm, 16, movups, xmm
    modload_ftrace_sets ymm, 32, vmovups, ymm
    modload_ftrace_sets zmm, 64, vmovups, zmm
    .popsection
"#,
    target = const offset_of!(FunctionRecord, target),
    set = const offset_of!(FunctionRecord, set),
    busy = const BUSY,
    running = const RUNNING,
    call = const offset_of!(TracerSet, call),
    data = const offset_of!(TracerSet, data),
    nested = sym NESTED_CALLS,
);

/// Declares the code that is defined above, and selects it.
macro_rules! codes {
    ($(($width:ident, $saved:ident, $then:ident): $called:ident $jumped:ident;)*) => {
        unsafe extern "C" {
            $(
                static $called: u8;
                static $jumped: u8;
            )*
        }

        /// Returns the code that calls a set, for sites that call and for sites that jump.
        pub(crate) fn code(width: VectorWidth, saved: SavedRegisters, then: AfterTracers, by: SiteBranch) -> Addr {
            address(match (width, saved, then, by) {
                $(
                    (VectorWidth::$width, SavedRegisters::$saved, AfterTracers::$then, SiteBranch::Call) => {
                        &raw const $called
                    }
                    (VectorWidth::$width, SavedRegisters::$saved, AfterTracers::$then, SiteBranch::Jump) => {
                        &raw const $jumped
                    }
                )*
            })
        }
    };
}

codes! {
    (Xmm, Arguments, Function): modload_ftrace_xmm_args modload_ftrace_xmm_args_jump;
    (Xmm, Arguments, Record): modload_ftrace_xmm_args_record modload_ftrace_xmm_args_record_jump;
    (Xmm, Arguments, Graph): modload_ftrace_xmm_args_graph modload_ftrace_xmm_args_graph_jump;
    (Xmm, All, Function): modload_ftrace_xmm_all modload_ftrace_xmm_all_jump;
    (Xmm, All, Record): modload_ftrace_xmm_all_record modload_ftrace_xmm_all_record_jump;
    (Xmm, All, Graph): modload_ftrace_xmm_all_graph modload_ftrace_xmm_all_graph_jump;
    (Ymm, Arguments, Function): modload_ftrace_ymm_args modload_ftrace_ymm_args_jump;
    (Ymm, Arguments, Record): modload_ftrace_ymm_args_record modload_ftrace_ymm_args_record_jump;
    (Ymm, Arguments, Graph): modload_ftrace_ymm_args_graph modload_ftrace_ymm_args_graph_jump;
    (Ymm, All, Function): modload_ftrace_ymm_all modload_ftrace_ymm_all_jump;
    (Ymm, All, Record): modload_ftrace_ymm_all_record modload_ftrace_ymm_all_record_jump;
    (Ymm, All, Graph): modload_ftrace_ymm_all_graph modload_ftrace_ymm_all_graph_jump;
    (Zmm, Arguments, Function): modload_ftrace_zmm_args modload_ftrace_zmm_args_jump;
    (Zmm, Arguments, Record): modload_ftrace_zmm_args_record modload_ftrace_zmm_args_record_jump;
    (Zmm, Arguments, Graph): modload_ftrace_zmm_args_graph modload_ftrace_zmm_args_graph_jump;
    (Zmm, All, Function): modload_ftrace_zmm_all modload_ftrace_zmm_all_jump;
    (Zmm, All, Record): modload_ftrace_zmm_all_record modload_ftrace_zmm_all_record_jump;
    (Zmm, All, Graph): modload_ftrace_zmm_all_graph modload_ftrace_zmm_all_graph_jump;
}
