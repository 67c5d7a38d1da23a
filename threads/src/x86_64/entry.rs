//! Code through which the kernel, the C library and the boundary enter this crate. Each macro defines symbols that its
//! user declares as `extern`; the functions that the code calls are the macro's arguments.

/// Defines `modload_threads_handler`: calls `on_signal` with the arguments of a signal handler. If `on_signal` returns an
/// address, the code jumps there with the same arguments, and with the stack of the handler's first instruction.
macro_rules! signal_entry {
    ($on_signal:ident) => {
        std::arch::global_asm!(
            ".pushsection .text.modload_threads_handler, \"ax\", @progbits",
            ".balign 16",
            ".hidden modload_threads_handler",
            ".globl modload_threads_handler",
            ".type modload_threads_handler, @function",
            "modload_threads_handler:",
            ".cfi_startproc",
            "push rdi",
            ".cfi_def_cfa_offset 16",
            "push rsi",
            ".cfi_def_cfa_offset 24",
            "push rdx",
            ".cfi_def_cfa_offset 32",
            "call {on_signal}",
            "pop rdx",
            ".cfi_def_cfa_offset 24",
            "pop rsi",
            ".cfi_def_cfa_offset 16",
            "pop rdi",
            ".cfi_def_cfa_offset 8",
            "test rax, rax",
            "jnz 2f",
            "ret",
            "2:",
            "jmp rax",
            ".cfi_endproc",
            ".size modload_threads_handler, . - modload_threads_handler",
            ".popsection",
            on_signal = sym $on_signal,
        );
    };
}
pub(crate) use signal_entry;

/// Defines `modload_threads_begin`, the first function of a thread: calls `take` with its argument, and jumps to the
/// function that `take` returns in the first register, with the argument that it returns in the second. Defines
/// `modload_threads_run_state`, the function `_M_run` of a `std::thread::_State`: calls `begin_state` with the state,
/// and jumps to `_M_run` of the state that this returns. `modload_threads_begin_start` and `modload_threads_begin_end`
/// are the bounds of this code.
macro_rules! thread_beginnings {
    ($take:ident, $begin_state:ident) => {
        std::arch::global_asm!(
            ".pushsection .text.modload_threads_begin, \"ax\", @progbits",
            ".balign 16",
            ".hidden modload_threads_begin",
            ".globl modload_threads_begin",
            ".type modload_threads_begin, @function",
            ".hidden modload_threads_begin_start",
            ".globl modload_threads_begin_start",
            "modload_threads_begin_start:",
            "modload_threads_begin:",
            ".cfi_startproc",
            "sub rsp, 8",
            ".cfi_def_cfa_offset 16",
            "call {take}",
            "mov rdi, rdx",
            "add rsp, 8",
            ".cfi_def_cfa_offset 8",
            "jmp rax",
            ".cfi_endproc",
            ".size modload_threads_begin, . - modload_threads_begin",
            ".balign 16",
            ".hidden modload_threads_run_state",
            ".globl modload_threads_run_state",
            ".type modload_threads_run_state, @function",
            "modload_threads_run_state:",
            ".cfi_startproc",
            "sub rsp, 8",
            ".cfi_def_cfa_offset 16",
            "call {begin_state}",
            "mov rdi, rax",
            "add rsp, 8",
            ".cfi_def_cfa_offset 8",
            "mov rax, [rdi]",
            // The third virtual function: _M_run.
            "jmp [rax + 16]",
            ".cfi_endproc",
            ".size modload_threads_run_state, . - modload_threads_run_state",
            ".hidden modload_threads_begin_end",
            ".globl modload_threads_begin_end",
            "modload_threads_begin_end:",
            "int3",
            ".popsection",
            take = sym $take,
            begin_state = sym $begin_state,
        );
    };
}
pub(crate) use thread_beginnings;

/// Defines `modload_threads_enter`, whose frame has this personality routine, `modload_threads_caught` and
/// `modload_threads_land`: see their declarations.
macro_rules! boundary_frame {
    ($personality:ident) => {
        std::arch::global_asm!(
            ".pushsection .text.modload_threads_enter, \"ax\", @progbits",
            ".balign 16",
            ".hidden modload_threads_enter",
            ".globl modload_threads_enter",
            ".type modload_threads_enter, @function",
            "modload_threads_enter:",
            ".cfi_startproc",
            // DW_EH_PE_pcrel | DW_EH_PE_sdata4.
            ".cfi_personality 0x1b, {personality}",
            // All registers that a caller relies on are on the stack, because `land` may jump here from any state.
            "push rbp",
            ".cfi_def_cfa_offset 16",
            ".cfi_offset rbp, -16",
            "push rbx",
            ".cfi_def_cfa_offset 24",
            ".cfi_offset rbx, -24",
            "push r12",
            ".cfi_def_cfa_offset 32",
            ".cfi_offset r12, -32",
            "push r13",
            ".cfi_def_cfa_offset 40",
            ".cfi_offset r13, -40",
            "push r14",
            ".cfi_def_cfa_offset 48",
            ".cfi_offset r14, -48",
            "push r15",
            ".cfi_def_cfa_offset 56",
            ".cfi_offset r15, -56",
            "sub rsp, 8",
            ".cfi_def_cfa_offset 64",
            "mov [rdx], rsp",
            "mov rax, rdi",
            "mov rdi, rsi",
            "call rax",
            "xor eax, eax",
            ".hidden modload_threads_caught",
            ".globl modload_threads_caught",
            "modload_threads_caught:",
            // rax holds the exception, which `personality` or `land` has stored there, or null.
            "add rsp, 8",
            ".cfi_def_cfa_offset 56",
            "pop r15",
            ".cfi_def_cfa_offset 48",
            "pop r14",
            ".cfi_def_cfa_offset 40",
            "pop r13",
            ".cfi_def_cfa_offset 32",
            "pop r12",
            ".cfi_def_cfa_offset 24",
            "pop rbx",
            ".cfi_def_cfa_offset 16",
            "pop rbp",
            ".cfi_def_cfa_offset 8",
            "ret",
            ".cfi_endproc",
            ".size modload_threads_enter, . - modload_threads_enter",
            ".hidden modload_threads_land",
            ".globl modload_threads_land",
            ".type modload_threads_land, @function",
            "modload_threads_land:",
            "mov rax, rdi",
            "mov rsp, rsi",
            "cld",
            "jmp modload_threads_caught",
            ".size modload_threads_land, . - modload_threads_land",
            ".popsection",
            personality = sym $personality,
        );
    };
}
pub(crate) use boundary_frame;

/// Defines a function of one argument that jumps to `next` with its argument and, as a second argument, its own return
/// address.
macro_rules! first_function {
    ($name:ident, $next:ident) => {
        #[unsafe(naked)]
        extern "C" fn $name(argument: *mut c_void) -> *mut c_void {
            std::arch::naked_asm!("mov rsi, [rsp]", "jmp {next}", next = sym $next)
        }
    };
}
pub(crate) use first_function;
