//! The registers and the assembler code of x86-64 that stop threads, begin threads and end exceptions.
//!
//! Another processor has to provide: the registers in a signal's context ([`register`], [`set_rip`],
//! [`call_has_failed`]), the system call instruction ([`system_call`]), an instruction after which a core executes
//! changed code ([`serialise_core`]), static thread-local memory that generated code reaches ([`own_address`],
//! [`fs_offset`]), and the pieces of code that the macros define. `frames/x86_64/` has the registers of frames.

mod context;
mod entry;
mod system_call;
mod word;

pub(crate) use context::{
    CALL_ARGUMENTS, EXCEPTION_REGISTER, FRAME_POINTER, INSTRUCTION_POINTER, STACK_POINTER, call_has_failed, register,
    serialise_core, set_rip,
};
pub(crate) use entry::{boundary_frame, first_function, signal_entry, thread_beginnings};
pub(crate) use system_call::system_call;
pub(crate) use word::{fs_offset, own_address};
