//! The thunks of x86-64 that the loader defines for modules that need them: branches through a register, and returns.
//!
//! Another processor has to provide the symbols that its compilers refer to without defining them ([`thunk`]), and the
//! code of these functions ([`thunk_code`]); [`THUNKS`] is 0 if there are none. Linux:
//! `arch/x86/lib/retpoline.S`.

use modload_abi::section;

/// Size of a thunk, and distance of two.
pub(crate) const THUNK: u64 = 32;
/// Number of thunks for branches: one for each register. The thunk for returns follows.
pub(crate) const THUNKS: u64 = 16;

/// The registers, by number.
const REGISTERS: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// Returns the number of the thunk for a symbol.
pub(crate) fn thunk(symbol: &[u8]) -> Option<u64> {
    if symbol == section::RETURN_THUNK_SYMBOL.as_bytes() || symbol == section::FENTRY_SYMBOL.as_bytes() {
        return Some(THUNKS);
    }
    let register = symbol.strip_prefix(section::INDIRECT_THUNK_PREFIX.as_bytes())?;
    if register == b"array" {
        return Some(0);
    }
    let number = REGISTERS.iter().position(|known| register == known.as_bytes())?;
    Some(modload_edit::wide(number))
}

/// Returns the code of a thunk: a branch through a register, or a return. INT3 fills the rest.
pub(crate) fn thunk_code(number: u64) -> Vec<u8> {
    let register = u8::try_from(number % 8).unwrap_or_default();
    match number {
        THUNKS => vec![0xc3], // ret
        // No code branches through the stack pointer.
        4 => vec![],
        0..8 => vec![0xff, 0xe0 + register],    // jmp *%rax, ..
        _ => vec![0x41, 0xff, 0xe0 + register], // jmp *%r8, ..
    }
}
