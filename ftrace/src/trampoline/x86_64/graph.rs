//! Records entry and return: the trampoline calls the function itself, so that the function returns to the trampoline.
//!
//! The site jumps. The trampoline takes the function's return address from the stack, keeps it in the thread's return
//! stack, and calls the function. The address that this call pushes lies where the other one was, and arguments on the
//! stack are at their former places. Each `ret` matches the `call` that the processor expects.
//!
//! `rbx`, which every function preserves, points to the frame's place in the return stack. So the unwind rows of this
//! code need only two expressions for the return address and `rbx` itself. Exceptions, cancellation and walks pass
//! through, and need nothing from the trampoline except the record ([`personality`]).
//!
//! A return stack belongs to one stack, the thread's own: a function that is called on another stack is not recorded.
//! So places lie in the order of their frames. A place whose frame is not above that of a function which is being
//! entered is stale or alive. The place is stale if `longjmp` has left the function. The place is alive if the thread
//! is on the stack of a coroutine that lies within the thread's own stack ([`crate::trampoline::return_stack`] distinguishes the
//! two cases). The same holds for a place above that of a function which returns.
//!
//! In a tail call both places have the same frame, and the frame's return address is the trampoline's. For unwinders
//! the two are one frame, the newer one: [`ReturnPlace::outer`] and [`ReturnPlace::outer_saved`] belong to the oldest.
//! Unwinders distinguish frames by their CFA, and two frames of the trampoline for one return address would have the
//! same CFA as the frame that called the first function.

use std::ffi::{c_int, c_void};
use std::mem::offset_of;
use std::ptr;

use modload_edit::Addr;

use crate::trampoline::function::{FunctionRecord, address};
use crate::trampoline::process_state::{HANDLE_RETURN, PREPARE_FOR_ENTRY};
use crate::trampoline::return_stack::record_unwound;
use crate::trampoline::ring::LEAVE;
use crate::trampoline::thread::{ReturnPlace, TraceThread};

// DWARF: 0x10 register length 0x73 offset: the register is saved at rbx + offset (DW_CFA_expression, DW_OP_breg3); 0x14
// 0x07 0x01: rsp is the CFA less 8 (DW_CFA_val_offset). While the function runs, and until its return address is on the
// stack again, the CFA is the caller's stack pointer and 8 more: no two frames may have the same CFA, because unwinders
// distinguish frames by the CFA.
recording_asm!(
    r#"
    .pushsection .text.modload_ftrace_graph, "ax", @progbits
    .balign 64
    .hidden modload_ftrace_graph
    .globl modload_ftrace_graph
    .type modload_ftrace_graph, @function
modload_ftrace_graph:
    .cfi_startproc
    // DW_EH_PE_pcrel | DW_EH_PE_sdata4.
    .cfi_personality 0x1b, {personality}
    .cfi_def_cfa rsp, 0
    .cfi_escape 0x10, 0x10, 0x02, 0x7b, {function_target}
    push qword ptr [r11 + {function_target}]
    .cfi_def_cfa_offset 8
    .cfi_offset rip, -8
    .hidden modload_ftrace_graph_behind
    .globl modload_ftrace_graph_behind
modload_ftrace_graph_behind:
    push rax
    .cfi_def_cfa_offset 16
    push rdx
    .cfi_def_cfa_offset 24
    push rcx
    .cfi_def_cfa_offset 32
    .cfi_remember_state
2:
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    cmp dword ptr fs:[rcx + {busy}], 0
    jne 18f
    mov dword ptr fs:[rcx + {busy}], 2
    mov eax, dword ptr [rip + {current}]
    cmp eax, dword ptr fs:[rcx + {session}]
    jne 17f
    mov rcx, qword ptr fs:[rcx]
    // The return address is in the thread's own stack, and below the frame of the function that was entered before.
    lea rax, [rsp + 32]
    mov rdx, rax
    sub rdx, qword ptr [rcx + {stack}]
    cmp rdx, qword ptr [rcx + {stack_len}]
    jae 14f
    mov rdx, qword ptr [rcx + {top}]
    cmp rax, qword ptr [rdx + {slot}]
    jae 16f
3:
    // A unit for this, one for its return, and one for each return to come.
    mov rax, qword ptr [rcx + {head}]
    sub rax, qword ptr [rcx + {tail}]
    add rax, qword ptr [rcx + {open}]
    cmp rax, qword ptr [rcx + {room}]
    ja 13f
    mov rdx, qword ptr [rcx + {free}]
    test rdx, rdx
    jz 17f
    mov rax, qword ptr [rdx + {next}]
    mov qword ptr [rcx + {free}], rax
    mov rax, qword ptr [rcx + {top}]
    mov qword ptr [rdx + {next}], rax
    mov qword ptr [rcx + {top}], rdx
    lea rax, [rsp + 32]
    mov qword ptr [rdx + {slot}], rax
    mov qword ptr [rdx + {saved}], rbx
    mov qword ptr [rdx + {function}], r11
    mov rax, qword ptr [rsp + 24]
    mov qword ptr [rdx + {target}], rax
    mov eax, dword ptr [rcx + {thread_session}]
    mov dword ptr [rdx + {place_session}], eax
    mov rax, qword ptr [rsp + 32]
    mov qword ptr [rdx + {parent}], rax
    cmp rax, qword ptr [rcx + {returns}]
    je 15f
    mov qword ptr [rdx + {outer}], rax
    mov qword ptr [rdx + {outer_saved}], rbx
12:
    mov rbx, rdx
    .cfi_escape 0x10, 0x03, 0x02, 0x73, {saved}
    mov eax, dword ptr [r11 + {number}]
    mov r11, qword ptr [rcx + {head}]
    and r11, qword ptr [rcx + {mask}]
    shl r11, 4
    add r11, qword ptr [rcx + {ring}]
    mov qword ptr [r11 + 8], rax
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov qword ptr [r11], rax
    inc qword ptr [rcx + {open}]
    // A reader that sees the new head sees the unit, too: stores are seen in their order.
    inc qword ptr [rcx + {head}]
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 0
    pop rcx
    .cfi_def_cfa_offset 24
    pop rdx
    .cfi_def_cfa_offset 16
    pop rax
    .cfi_def_cfa_offset 8
    lea rsp, [rsp + 16]
    // Here the function is still to come: its return address is below rsp, where signals leave it alone.
    .cfi_def_cfa_offset 0
    .cfi_escape 0x10, 0x10, 0x02, 0x73, {target}
    .cfi_escape 0x14, 0x07, 0x01
    // call qword ptr [rbx + target]: from its second byte on the rows are those for the function's callers.
    .byte 0xff
    .cfi_def_cfa_offset 8
    .cfi_escape 0x10, 0x10, 0x02, 0x73, {outer}
    .cfi_escape 0x10, 0x03, 0x02, 0x73, {outer_saved}
    .byte 0x53, {target}
    .hidden modload_ftrace_return
    .globl modload_ftrace_return
modload_ftrace_return:
    push qword ptr [rbx + {parent}]
    .cfi_def_cfa_offset 8
    .cfi_restore rsp
    .cfi_offset rip, -8
    .cfi_escape 0x10, 0x03, 0x02, 0x73, {saved}
    push rax
    .cfi_def_cfa_offset 16
    push rdx
    .cfi_def_cfa_offset 24
    push rcx
    .cfi_def_cfa_offset 32
    .cfi_remember_state
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 2
    mov rdx, qword ptr fs:[rcx]
    cmp rbx, qword ptr [rdx + {top}]
    jne 21f
5:
    mov eax, dword ptr fs:[rcx + {session}]
    mov rcx, qword ptr fs:[rcx]
    cmp eax, dword ptr [rbx + {place_session}]
    jne 4f
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov rdx, qword ptr [rcx + {head}]
    and rdx, qword ptr [rcx + {mask}]
    shl rdx, 4
    add rdx, qword ptr [rcx + {ring}]
    mov qword ptr [rdx], rax
    mov rax, qword ptr [rbx + {function}]
    mov eax, dword ptr [rax + {number}]
    mov dword ptr [rdx + 8], eax
    mov dword ptr [rdx + 12], {leave}
    dec qword ptr [rcx + {open}]
    inc qword ptr [rcx + {head}]
4:
    mov rax, qword ptr [rbx + {next}]
    mov qword ptr [rcx + {top}], rax
    mov rax, qword ptr [rcx + {free}]
    mov qword ptr [rbx + {next}], rax
    mov qword ptr [rcx + {free}], rbx
6:
    mov rbx, qword ptr [rbx + {saved}]
    .cfi_restore rbx
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 0
    pop rcx
    .cfi_def_cfa_offset 24
    pop rdx
    .cfi_def_cfa_offset 16
    pop rax
    .cfi_def_cfa_offset 8
    ret

    // Functions that it had called were left by longjmp, or it was assumed to be left itself: then its place has been
    // given back.
    .cfi_restore_state
21:
    mov rax, rbx
    mov rdx, qword ptr [rip + {handle_return}]
    call qword ptr [rip + {slow_path}]
    test eax, eax
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    jz 5b
    jmp 6b

    // A tail call of a function that is recorded: rbx is its place.
    .cfi_restore_state
    .cfi_remember_state
15:
    mov rax, qword ptr [rbx + {outer}]
    mov qword ptr [rdx + {outer}], rax
    mov rax, qword ptr [rbx + {outer_saved}]
    mov qword ptr [rdx + {outer_saved}], rax
    jmp 12b

    // The function runs, and is not recorded.
    .cfi_restore_state
13:
    inc qword ptr [rcx + {dropped}]
    jmp 19f
14:
    inc qword ptr [rcx + {elsewhere}]
    jmp 19f
16:
    // Not below: stale, unless it is the same frame and returns to this code.
    jne 17f
    mov rdx, qword ptr [rcx + {returns}]
    cmp rdx, qword ptr [rsp + 32]
    je 3b
17:
    lea rax, [rsp + 32]
    mov rdx, qword ptr [rip + {prepare_for_entry}]
    call qword ptr [rip + {slow_path}]
    test eax, eax
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 0
    jnz 2b
    jmp 20f
18:
    lock inc qword ptr [rip + {nested}]
    jmp 20f
19:
    mov rcx, qword ptr [rip + modload_ftrace_thread@GOTTPOFF]
    mov dword ptr fs:[rcx + {busy}], 0
20:
    pop rcx
    .cfi_def_cfa_offset 24
    pop rdx
    .cfi_def_cfa_offset 16
    pop rax
    .cfi_def_cfa_offset 8
    ret
    .cfi_endproc
    .size modload_ftrace_graph, . - modload_ftrace_graph

    // No tracing: for a thread that jumps late, and for a thread that calls late.
    .balign 16
    .hidden modload_ftrace_pass_jump
    .globl modload_ftrace_pass_jump
modload_ftrace_pass_jump:
    .cfi_startproc
    .cfi_def_cfa rsp, 0
    .cfi_escape 0x10, 0x10, 0x02, 0x7b, {function_target}
    jmp qword ptr [r11 + {function_target}]
    .cfi_endproc
    .balign 16
    .hidden modload_ftrace_pass_call
    .globl modload_ftrace_pass_call
modload_ftrace_pass_call:
    .cfi_startproc
    ret
    .cfi_endproc
    .popsection
"#,
    personality = sym personality,
    function_target = const offset_of!(FunctionRecord, target),
    top = const offset_of!(TraceThread, top),
    free = const offset_of!(TraceThread, free),
    returns = const offset_of!(TraceThread, returns),
    stack = const offset_of!(TraceThread, stack),
    stack_len = const offset_of!(TraceThread, stack_len),
    open = const offset_of!(TraceThread, open),
    elsewhere = const offset_of!(TraceThread, elsewhere),
    thread_session = const offset_of!(TraceThread, session),
    next = const offset_of!(ReturnPlace, next),
    outer = const offset_of!(ReturnPlace, outer),
    outer_saved = const offset_of!(ReturnPlace, outer_saved),
    parent = const offset_of!(ReturnPlace, parent),
    saved = const offset_of!(ReturnPlace, saved),
    slot = const offset_of!(ReturnPlace, slot),
    function = const offset_of!(ReturnPlace, function),
    target = const offset_of!(ReturnPlace, target),
    place_session = const offset_of!(ReturnPlace, session),
    leave = const LEAVE,
    handle_return = sym HANDLE_RETURN,
    prepare_for_entry = sym PREPARE_FOR_ENTRY,
);

unsafe extern "C" {
    static modload_ftrace_graph: u8;
    static modload_ftrace_pass_jump: u8;
    static modload_ftrace_pass_call: u8;
    static modload_ftrace_return: u8;
}

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

/// Returns the code that records entry and return.
pub(crate) fn code() -> Addr {
    address(&raw const modload_ftrace_graph)
}

/// Returns the address to which recorded functions return.
pub(in crate::trampoline) fn returns() -> u64 {
    address(&raw const modload_ftrace_return).get()
}

/// Returns the code for a function that is not traced, entered by a jump.
pub(crate) fn pass_jump() -> Addr {
    address(&raw const modload_ftrace_pass_jump)
}

/// Returns the code for a function that is not traced, entered by a call.
pub(crate) fn pass_call() -> Addr {
    address(&raw const modload_ftrace_pass_call)
}

// Itanium C++ ABI, exception handling, 1.2 and 1.3.
const CLEANUP_PHASE: c_int = 2;
const CONTINUE_UNWIND: c_int = 8;
const FATAL_PHASE1_ERROR: c_int = 3;
/// The DWARF number of rbx.
const RBX: c_int = 3;

/// The personality routine of the frame beneath a traced function: the routine catches nothing and cleans nothing up,
/// but records that the function has been left. The next function that is entered or left gives back the place, because
/// the unwinder reads the place after this call.
unsafe extern "C" fn personality(
    version: c_int,
    actions: c_int,
    _class: u64,
    _exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    if version != 1 {
        return FATAL_PHASE1_ERROR;
    }
    if actions & CLEANUP_PHASE != 0 {
        // SAFETY: the context is the unwinder's, for a frame of the trampoline that calls the traced function. That
        // function preserves rbx.
        let place = unsafe { _Unwind_GetGR(context, RBX) };
        let place: *mut ReturnPlace = ptr::with_exposed_provenance_mut(place);
        record_unwound(place);
    }
    CONTINUE_UNWIND
}
