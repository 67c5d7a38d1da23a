//! The operands of the assembler code for recordings.

/// Assembles code as `global_asm!` does, with the operands that all code for recordings needs: the offsets of fields in
/// the thread-local memory, in the state of a thread and in the record of a function, and the state of the process. The
/// operands that only this code needs follow the code.
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
