//! The instructions of static keys and static calls, for x86-64.
//!
//! Another processor has to provide: a NOP with a record (`static_branch`), a call with the arguments in the registers
//! of the C ABI (`static_call_asm`), and an empty trampoline (`static_call_trampoline`), each as the loader reads it.

/// A branch site, compiled as a NOP that continues with `$straight`, and its record in `__jump_table`. The loader may
/// replace the NOP by a jump that continues with the opposite.
#[doc(hidden)]
#[macro_export]
macro_rules! static_branch {
    ($key:path, $likely:literal, $straight:literal) => {
        'branch: {
            // SAFETY: a NOP and a record of it. The loader replaces the NOP only by a jump to the label, or by a NOP
            // again.
            unsafe {
                ::core::arch::asm!(
                    "1: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
                    ".pushsection __jump_table, \"a\", @progbits",
                    ".balign 8",
                    ".long 1b - .",
                    ".long {jumped} - .",
                    concat!(".quad {key} + ", $likely, " - ."),
                    ".popsection",
                    key = sym $key,
                    jumped = label { break 'branch !$straight },
                    options(att_syntax, nomem, nostack, preserves_flags),
                );
            }
            $straight
        }
    };
}

/// The trampoline, which returns until the loader writes a jump to the key's function.
#[doc(hidden)]
#[macro_export]
macro_rules! static_call_trampoline {
    ($name:ident) => {
        ::core::arch::global_asm!(
            ".pushsection .modload.static_calls, \"\", @progbits",
            ".popsection",
            ".pushsection .static_call.text, \"ax\", @progbits",
            ".balign 8",
            concat!(".globl __SCT__", stringify!($name)),
            concat!(".hidden __SCT__", stringify!($name)),
            concat!(".type __SCT__", stringify!($name), ", @function"),
            concat!("__SCT__", stringify!($name), ":"),
            ".cfi_startproc",
            ".byte 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 0xb9, 0xcc",
            ".cfi_endproc",
            concat!(".size __SCT__", stringify!($name), ", . - __SCT__", stringify!($name)),
            ".popsection",
        );
    };
}

/// The call instruction, with each argument in the register of the C ABI.
#[doc(hidden)]
#[macro_export]
macro_rules! static_call_asm {
    (@call $name:ident [$($args:ident)*] $($result:ty)?) => {
        $crate::static_call_asm!($name [] [$($args)*] ["rdi" "rsi" "rdx" "rcx" "r8" "r9"] $($result)?)
    };
    ($name:ident [$($in:tt)*] [$arg:ident $($args:ident)*] [$register:tt $($registers:tt)*] $($result:ty)?) => {
        $crate::static_call_asm!($name [$($in)* in($register) $arg,] [$($args)*] [$($registers)*] $($result)?)
    };
    ($name:ident [$($in:tt)*] [] [$($registers:tt)*] $result:ty) => {{
        let result: $result;
        // SAFETY: this calls a function of this type by the C ABI, and all clobbered registers are declared.
        unsafe {
            ::core::arch::asm!(
                concat!("call __SCT__", stringify!($name)),
                $($in)*
                lateout("rax") result,
                clobber_abi("C"),
            );
        }
        result
    }};
    ($name:ident [$($in:tt)*] [] [$($registers:tt)*]) => {
        // SAFETY: as above.
        unsafe {
            ::core::arch::asm!(concat!("call __SCT__", stringify!($name)), $($in)* clobber_abi("C"));
        }
    };
}
