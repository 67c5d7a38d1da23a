//! Stacks as they really are: what the walker of `modload_threads::frames` finds, next to what is known otherwise.
//!
//! - `agree`: next to libgcc's `_Unwind_Backtrace`, from within callbacks, signal handlers, threads.
//! - `step`: at every single instruction of some calls, next to the calls and returns that were executed.

mod agree;
mod code;
mod step;

use std::process::ExitCode;

use modload_tests::Case;

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("plain_frames_agree_with_libgcc", agree::plain),
        Case::new("callbacks_of_the_c_library_agree_with_libgcc", agree::callbacks),
        Case::new("signal_handlers_agree_with_libgcc", agree::signals),
        Case::new("signal_handlers_on_a_stack_of_their_own_agree_with_libgcc", agree::signals_on_another_stack),
        Case::new("nested_signal_handlers_agree_with_libgcc", agree::nested_signals),
        Case::new("threads_agree_with_libgcc", agree::threads),
        Case::new("deep_recursion_agrees_with_libgcc", agree::deep),
        Case::new("frames_of_c_agree_with_libgcc", agree::c_frames),
        Case::new("frames_of_cxx_agree_with_libgcc", agree::cxx_frames).needing("g++"),
        Case::new("a_library_that_comes_late_is_known", agree::late_library),
        Case::new("a_stack_that_was_written_over_is_an_error", agree::corrupted),
        Case::new("every_instruction_of_c_functions", step::c_functions),
        Case::new("every_instruction_of_a_lazy_call", step::lazy_call),
        Case::new("every_instruction_of_the_vdso", step::vdso),
        Case::new("every_instruction_of_a_signal", step::signal),
        Case::new("every_instruction_of_the_c_library", step::c_library),
    ])
}
