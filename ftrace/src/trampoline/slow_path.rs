//! The slow path of recordings: the Rust function that assembler code calls if it cannot record a function by itself,
//! and the code that preserves registers for the call.

use std::arch::global_asm;
use std::ptr;
use std::sync::atomic::Ordering;

use modload_edit::index;

use super::attach::{attach, register_for_ends};
use super::event;
use super::function::address;
use super::process_state::{CURRENT_SESSION, NO_SESSION, SLOW_PATH, UNATTACHED_CALLS};
use super::return_stack::{DONE, PASS, RETRY, RETURNED};
use super::thread_local::{ENDING, local};
use super::variants::VectorWidth;

global_asm!(
    r#"
    .pushsection .text.modload_ftrace_ask, "ax", @progbits
// The argument and the answer are in rax. All registers except rax, rcx and rdx are preserved. The caller has saved
// rcx and rdx.
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
    call {slow_path}
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
"#,
    slow_path = sym slow_path,
);

unsafe extern "C" {
    static modload_ftrace_ask_xmm: u8;
    static modload_ftrace_ask_ymm: u8;
    static modload_ftrace_ask_zmm: u8;
}

/// Prepares tracing, once: stores the width of the widest vector registers, and registers for the ends of threads.
pub(crate) fn prepare(widest: VectorWidth) {
    let code = match widest {
        VectorWidth::Xmm => &raw const modload_ftrace_ask_xmm,
        VectorWidth::Ymm => &raw const modload_ftrace_ask_ymm,
        VectorWidth::Zmm => &raw const modload_ftrace_ask_zmm,
    };
    SLOW_PATH.store(address(code).get(), Ordering::SeqCst);
    register_for_ends();
}

/// Handles a function that cannot be recorded in the present state: the thread has not joined this recording yet, has
/// left functions by `longjmp`, is on a coroutine's stack, or has no free places. `slot` is the address at which the
/// function's return address is stored, or 0 if only calls are recorded. With [`RETURNED`], `slot` is the place of a
/// function that returns and is not the newest. Async-signal-safe, and no cancellation point.
extern "C" fn slow_path(slot: u64) -> u64 {
    if slot == event::EVENT_SLOT {
        event::call_hook();
        return PASS;
    }
    let local = local();
    if slot >> RETURNED != 0 {
        let place = ptr::with_exposed_provenance_mut(index(slot & !(1 << RETURNED)));
        // SAFETY: a thread that has places has a state, which is its own.
        return unsafe { local.thread.get().as_ref() }.map_or(DONE, |thread| thread.handle_return(place));
    }
    let current = CURRENT_SESSION.load(Ordering::Acquire);
    if current == NO_SESSION {
        return PASS;
    }
    if local.session.get() != current {
        let attached = if local.session.get() == ENDING { None } else { attach(local, current) };
        if attached.is_none() {
            UNATTACHED_CALLS.fetch_add(1, Ordering::Relaxed);
        }
        return attached.map_or(PASS, |()| RETRY);
    }
    // SAFETY: a thread that has joined has a state, which is its own.
    let Some(thread) = (unsafe { local.thread.get().as_ref() }) else { return PASS };
    if is_on_signal_stack() {
        thread.elsewhere.fetch_add(1, Ordering::Relaxed);
        return PASS;
    }
    thread.prepare_for_entry(slot)
}

/// Returns whether this thread is on its alternate signal stack. That stack may lie in the middle of the thread's own
/// stack, where the places of functions beneath the signal look stale. Async-signal-safe.
fn is_on_signal_stack() -> bool {
    let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: the call only reads the setting, and the kernel writes to a local variable.
    let asked = unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) };
    asked == 0 && stack.ss_flags & libc::SS_ONSTACK != 0
}
