//! Real stacks: the results of the walker of `modload_threads::frames`, compared with other sources.
//!
//! - `agree`: next to libgcc's `_Unwind_Backtrace`, from within callbacks, signal handlers, threads.
//! - `step`: at every single instruction of some calls, next to the calls and returns that were executed.

mod agree;
mod code;
mod step;

use std::process::ExitCode;

use modload_tests::case;

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(agree::plain_frames_agree_with_libgcc),
        case!(agree::callbacks_of_the_c_library_agree_with_libgcc),
        case!(agree::signal_handlers_agree_with_libgcc),
        case!(agree::signal_handlers_on_a_stack_of_their_own_agree_with_libgcc),
        case!(agree::nested_signal_handlers_agree_with_libgcc),
        case!(agree::threads_agree_with_libgcc),
        case!(agree::deep_recursion_agrees_with_libgcc),
        case!(agree::frames_of_c_agree_with_libgcc),
        case!(agree::frames_of_cxx_agree_with_libgcc).needing("g++"),
        case!(agree::a_library_that_comes_late_is_known),
        case!(agree::a_stack_that_was_written_over_is_an_error),
        case!(step::every_instruction_of_c_functions),
        case!(step::every_instruction_of_a_lazy_call),
        case!(step::every_instruction_of_the_vdso),
        case!(step::every_instruction_of_a_signal),
        case!(step::every_instruction_of_a_module),
        case!(step::every_instruction_of_the_c_library),
    ])
}
