//! The stack pointer, and the words that calls and signals leave on a stack.

use std::arch::asm;

/// Two marks of a signal frame. The kernel writes them into the frame, and other code hardly ever onto a stack: the
/// segment registers of a 64-bit thread in one word (`struct sigcontext`: cs 0x33, ss 0x2b), and `FP_XSTATE_MAGIC1` in
/// the lower half of another word.
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
const XSTATE: u64 = 0x4650_5853;

/// Returns whether a word of a stack is one of two marks of a signal frame.
pub(crate) fn is_mark_of_signal_frame(word: u64) -> bool {
    word == SEGMENTS || word & 0xffff_ffff == XSTATE
}

/// Returns the stack pointer of the function that calls this function, or a lower one.
#[inline(always)]
pub(crate) fn stack_pointer() -> u64 {
    let rsp: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    rsp
}

/// Returns whether the bytes before an address may end with a call: `call rel32`, or `call` through a register or
/// memory, of two to seven bytes. Other code may end with the same bytes.
#[must_use]
pub fn is_behind_call(before: &[u8]) -> bool {
    let ends_so = |len: usize| before.len().checked_sub(len).and_then(|start| before.get(start..));
    let relative = ends_so(5).is_some_and(|call| call[0] == 0xe8);
    let indirect = |len| ends_so(len).is_some_and(|call: &[u8]| call[0] == 0xff && matches!(call[1] >> 3 & 7, 2 | 3));
    relative || (2..=7).any(indirect)
}

#[cfg(test)]
mod tests {
    use super::is_behind_call;

    #[test]
    fn calls_of_every_length_are_recognised() {
        let calls: [&[u8]; 8] = [
            &[0xe8, 1, 2, 3, 4],
            &[0x67, 0xe8, 1, 2, 3, 4],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x50, 0x18],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
            &[0x42, 0xff, 0x14, 0xe5, 1, 2, 3, 4],
        ];
        for call in calls {
            assert!(is_behind_call(&[&[0x90; 8], call].concat()), "{call:02x?}");
        }
        for other in [&[][..], &[0xff], &[0x90; 8], &[0xc3], &[0xcc; 8], &[0xff, 0xe0], &[0xe9, 1, 2, 3, 4]] {
            assert!(!is_behind_call(other), "{other:02x?}");
        }
    }
}
