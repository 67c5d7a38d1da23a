//! Records a call: a time, the function and its caller, into the thread's ring.

use std::mem::offset_of;

use modload_edit::Addr;

use crate::trampoline::function::{FunctionRecord, address};
use crate::trampoline::process_state::JOIN_FOR_CALL;
use crate::trampoline::ring::CALL;
use crate::trampoline::variants::SiteBranch;

// The address at which the function continues, and its return address, are on the stack.
recording_asm!(
    r#"
    .pushsection .text.modload_ftrace_record, "ax", @progbits
    .balign 64
    .hidden modload_ftrace_record_jump
    .globl modload_ftrace_record_jump
    .type modload_ftrace_record_jump, @function
modload_ftrace_record_jump:
    .cfi_startproc
    .cfi_def_cfa rsp, 0
    // rip is at [r11 + target]: DW_CFA_expression, DW_OP_breg11.
    .cfi_escape 0x10, 0x10, 0x02, 0x7b, {target}
    push qword ptr [r11 + {target}]
    .cfi_def_cfa_offset 8
    .cfi_offset rip, -8
    .hidden modload_ftrace_record
    .globl modload_ftrace_record
modload_ftrace_record:
    push rax
    .cfi_def_cfa_offset 16
    push rdx
    .cfi_def_cfa_offset 24
    push rcx
    .cfi_def_cfa_offset 32
2:
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    cmp dword ptr fs:[rcx + {busy}], 0
    jne 8f
    mov dword ptr fs:[rcx + {busy}], 2
    mov eax, dword ptr [rip + {current}]
    cmp eax, dword ptr fs:[rcx + {session}]
    jne 7f
    mov rcx, qword ptr fs:[rcx]
    // Two units must be free.
    mov rax, qword ptr [rcx + {head}]
    sub rax, qword ptr [rcx + {tail}]
    cmp rax, qword ptr [rcx + {room}]
    ja 6f
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rdx, qword ptr [rcx + {head}]
    and rdx, qword ptr [rcx + {mask}]
    shl rdx, 4
    add rdx, qword ptr [rcx + {ring}]
    mov qword ptr [rdx], rax
    mov eax, dword ptr [r11 + {number}]
    mov dword ptr [rdx + 8], eax
    mov dword ptr [rdx + 12], {call}
    mov rax, qword ptr [rsp + 32]
    mov qword ptr [rdx + 16], rax
    // A reader that sees the new head sees the units, too: stores are seen in their order.
    add qword ptr [rcx + {head}], 2
3:
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 0
4:
    .cfi_remember_state
    pop rcx
    .cfi_def_cfa_offset 24
    pop rdx
    .cfi_def_cfa_offset 16
    pop rax
    .cfi_def_cfa_offset 8
    ret
6:
    .cfi_restore_state
    inc qword ptr [rcx + {dropped}]
    jmp 3b
7:
    mov rdx, qword ptr [rip + {join_for_call}]
    call qword ptr [rip + {slow_path}]
    test eax, eax
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 0
    jnz 2b
    jmp 4b
8:
    lock inc qword ptr [rip + {nested}]
    jmp 4b
    .cfi_endproc
    .size modload_ftrace_record_jump, . - modload_ftrace_record_jump
    .popsection
"#,
    target = const offset_of!(FunctionRecord, target),
    call = const CALL,
    join_for_call = sym JOIN_FOR_CALL,
);

unsafe extern "C" {
    static modload_ftrace_record: u8;
    static modload_ftrace_record_jump: u8;
}

/// Returns the code that records a call, for sites that call and for sites that jump.
pub(crate) fn code(by: SiteBranch) -> Addr {
    address(match by {
        SiteBranch::Call => &raw const modload_ftrace_record,
        SiteBranch::Jump => &raw const modload_ftrace_record_jump,
    })
}
