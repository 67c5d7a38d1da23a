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
            current = sym $crate::trampoline::process_state::CURRENT,
            nested = sym $crate::trampoline::process_state::NESTED,
            ask = sym $crate::trampoline::process_state::ASK,
            head = const std::mem::offset_of!($crate::trampoline::thread::Thread, head),
            tail = const std::mem::offset_of!($crate::trampoline::thread::Thread, tail),
            room = const std::mem::offset_of!($crate::trampoline::thread::Thread, room),
            mask = const std::mem::offset_of!($crate::trampoline::thread::Thread, mask),
            ring = const std::mem::offset_of!($crate::trampoline::thread::Thread, ring),
            dropped = const std::mem::offset_of!($crate::trampoline::thread::Thread, dropped),
            number = const std::mem::offset_of!($crate::trampoline::function::Function, number),
            $($own)*
        );
    };
}
