//! Code that tells somebody that a thread has come by, between any two of its instructions, and sends it on: for stubs of live
//! patching's.

use std::arch::global_asm;
use std::mem::offset_of;
use std::sync::OnceLock;

use modload_edit::Addr;

use super::sets::address;
use super::thread::ASK;

/// What `r11` points to when [`event_code`] is jumped to. It lives for ever.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Where the thread was before, for walks: an address behind a call, of the function that it is in.
    pub home: u64,
    /// Where it goes on.
    pub then: u64,
}

/// What `rax` holds to say that it is an event. No return address stands there.
pub(super) const EVENT: u64 = u64::MAX;

static HOOK: OnceLock<fn()> = OnceLock::new();

/// Has a function called for each event, in the thread that it happens in. It is async-signal-safe. The first one that is given
/// stays.
pub fn on_event(hook: fn()) {
    HOOK.get_or_init(|| hook);
}

pub(super) fn happened() {
    if let Some(hook) = HOOK.get() {
        hook();
    }
}

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
    mov rax, -1
    call qword ptr [rip + {ask}]
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
    home = const offset_of!(Event, home),
    then = const offset_of!(Event, then),
    ask = sym ASK,
);

unsafe extern "C" {
    static modload_ftrace_event: u8;
    static modload_ftrace_event_end: u8;
}

/// The code that is jumped to with an [`Event`] in `r11`, and the range of its addresses. All registers but that one are preserved.
#[must_use]
pub fn event_code() -> (Addr, std::ops::Range<u64>) {
    let start = address(&raw const modload_ftrace_event);
    (start, start.get()..address(&raw const modload_ftrace_event_end).get())
}
