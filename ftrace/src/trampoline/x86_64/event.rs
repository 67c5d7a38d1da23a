//! The code that reports an event: see [`StubEvent`].

use std::arch::global_asm;
use std::mem::offset_of;

use modload_edit::Addr;

use crate::trampoline::event::StubEvent;
use crate::trampoline::function::address;
use crate::trampoline::process_state::{REPORT_EVENT, SLOW_PATH};

global_asm!(
    r#"
    .pushsection .text.modload_ftrace_event, "ax", @progbits
    .balign 16
    .hidden modload_ftrace_event
    .globl modload_ftrace_event
    .type modload_ftrace_event, @function
modload_ftrace_event:
    .cfi_startproc
    .cfi_def_cfa rsp, 0
    // rip is at [r11 + home]: DW_CFA_expression, DW_OP_breg11.
    .cfi_escape 0x10, 0x10, 0x02, 0x7b, {home}
    push qword ptr [r11 + {home}]
    .cfi_def_cfa_offset 8
    .cfi_offset rip, -8
    push rax
    .cfi_def_cfa_offset 16
    push rdx
    .cfi_def_cfa_offset 24
    push rcx
    .cfi_def_cfa_offset 32
    mov rdx, qword ptr [rip + {report_event}]
    call qword ptr [rip + {slow_path}]
    pop rcx
    .cfi_def_cfa_offset 24
    pop rdx
    .cfi_def_cfa_offset 16
    pop rax
    .cfi_def_cfa_offset 8
    lea rsp, [rsp + 8]
    .cfi_def_cfa_offset 0
    .cfi_escape 0x10, 0x10, 0x02, 0x7b, {home}
    jmp qword ptr [r11 + {then}]
    .cfi_endproc
    .size modload_ftrace_event, . - modload_ftrace_event
    .hidden modload_ftrace_event_end
    .globl modload_ftrace_event_end
modload_ftrace_event_end:
    .popsection
"#,
    home = const offset_of!(StubEvent, home),
    then = const offset_of!(StubEvent, then),
    slow_path = sym SLOW_PATH,
    report_event = sym REPORT_EVENT,
);

unsafe extern "C" {
    static modload_ftrace_event: u8;
    static modload_ftrace_event_end: u8;
}

/// Returns the code to jump to with a [`StubEvent`] in `r11`, and the range of its addresses. The code preserves all
/// registers except `r11`.
#[must_use]
pub fn event_code() -> (Addr, std::ops::Range<u64>) {
    let start = address(&raw const modload_ftrace_event);
    (start, start.get()..address(&raw const modload_ftrace_event_end).get())
}
