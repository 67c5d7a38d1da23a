//! The operands of the assembler code that records.

/// `global_asm!` with the operands that all code has that records: where the thread-local memory has its fields, where
/// the states of a thread and of a function have theirs, and the state of the process. The code's own operands follow
/// the code.
macro_rules! recording_asm {
    ($code:literal, $($own:tt)*) => {
        std::arch::global_asm!(
            $code,
            busy = const $crate::trampoline::thread_local::BUSY,
            session = const $crate::trampoline::thread_local::SESSION,
            current = sym $crate::trampoline::process_state::CURRENT_SESSION,
            nested = sym $crate::trampoline::process_state::NESTED_CALLS,
            slow_path = sym $crate::trampoline::process_state::SLOW_PATH,
            head = const std::mem::offset_of!($crate::trampoline::thread::TraceThread, head),
            tail = const std::mem::offset_of!($crate::trampoline::thread::TraceThread, tail),
            room = const std::mem::offset_of!($crate::trampoline::thread::TraceThread, room),
            mask = const std::mem::offset_of!($crate::trampoline::thread::TraceThread, mask),
            ring = const std::mem::offset_of!($crate::trampoline::thread::TraceThread, ring),
            dropped = const std::mem::offset_of!($crate::trampoline::thread::TraceThread, dropped),
            number = const std::mem::offset_of!($crate::trampoline::function::FunctionRecord, number),
            $($own)*
        );
    };
}
