//! The instruction that traps, and branches with a 32-bit displacement.

use crate::{Addr, wide};

/// The instruction that traps: one byte, which fits over the first byte of every instruction.
pub const INT3: u8 = 0xcc;

/// The length of a call or a jump with a 32-bit displacement.
pub const BRANCH_LEN: usize = 5;

/// Returns the call of `to` for the address `at`. Returns `None` if `to` is out of reach.
#[must_use]
#[inline]
pub fn encode_call(at: Addr, to: Addr) -> Option<[u8; BRANCH_LEN]> {
    encode(0xe8, at, to)
}

/// Returns the jump to `to` for the address `at`. Returns `None` if `to` is out of reach.
#[must_use]
#[inline]
pub fn encode_jump(at: Addr, to: Addr) -> Option<[u8; BRANCH_LEN]> {
    encode(0xe9, at, to)
}

#[inline]
fn encode(opcode: u8, at: Addr, to: Addr) -> Option<[u8; BRANCH_LEN]> {
    let distance = i32::try_from(to - (at + wide(BRANCH_LEN))).ok()?;
    let [a, b, c, d] = distance.to_le_bytes();
    Some([opcode, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::{encode_call, encode_jump};
    use crate::{Addr, disassembled};

    #[test]
    fn a_branch_within_reach_is_what_a_decoder_says() {
        let (at, to) = (Addr::new(0x1_0000_0000), Addr::new(0x1_0000_1000));
        assert_eq!(disassembled(at, &encode_call(at, to).unwrap()), "call 0x100001000");
        assert_eq!(disassembled(at, &encode_jump(at, to).unwrap()), "jmp 0x100001000");
        let behind = at + 5;
        assert!(encode_call(at, behind + 0x7fff_ffff).is_some() && encode_call(at, behind + 0x8000_0000).is_none());
        assert!(encode_jump(at, behind.offset(-0x8000_0000)).is_some());
        assert!(encode_jump(at, behind.offset(-0x8000_0001)).is_none());
    }
}
