//! Sixteen bytes of static thread-local memory, and how generated code reaches them.

use std::arch::global_asm;
use std::ffi::c_void;

global_asm!(
    ".pushsection .tbss.modload_threads_word, \"awT\", @nobits",
    ".balign 8",
    ".hidden modload_threads_word",
    ".globl modload_threads_word",
    ".type modload_threads_word, @object",
    ".size modload_threads_word, 16",
    "modload_threads_word:",
    ".zero 16",
    ".popsection",
    ".pushsection .text.modload_threads_own_word, \"ax\", @progbits",
    ".balign 16",
    ".hidden modload_threads_own_word",
    ".globl modload_threads_own_word",
    ".type modload_threads_own_word, @function",
    "modload_threads_own_word:",
    ".cfi_startproc",
    "mov rax, qword ptr [rip + modload_threads_word@GOTTPOFF]",
    "add rax, qword ptr fs:[0]",
    "ret",
    ".cfi_endproc",
    ".size modload_threads_own_word, . - modload_threads_own_word",
    ".hidden modload_threads_word_offset",
    ".globl modload_threads_word_offset",
    ".type modload_threads_word_offset, @function",
    "modload_threads_word_offset:",
    ".cfi_startproc",
    "mov rax, qword ptr [rip + modload_threads_word@GOTTPOFF]",
    "ret",
    ".cfi_endproc",
    ".size modload_threads_word_offset, . - modload_threads_word_offset",
    ".popsection",
);

unsafe extern "C" {
    /// Returns the address of the sixteen bytes of this thread.
    #[link_name = "modload_threads_own_word"]
    pub(crate) safe fn own_address() -> *const c_void;
    /// Returns the distance of these bytes from the address in `fs`.
    #[link_name = "modload_threads_word_offset"]
    pub(crate) safe fn fs_offset() -> i64;
}
