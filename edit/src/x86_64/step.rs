//! The effect of an instruction on a thread, for the few instructions that a trap handler can emulate.

use iced_x86::{Decoder, DecoderOptions};

use super::branch::INT3;
use super::nops::NOPS;
use crate::{Addr, wide};

/// The effect of an instruction at a site that is being changed. A thread that meets the INT3 at the site is given this
/// effect instead of executing the instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstructionEffect {
    /// A NOP: continues at this address.
    Next(Addr),
    /// `jmp`: continues at this address.
    Jump(Addr),
    /// `jmp *slot(%rip)`: continues at the address in the slot.
    JumpThrough(Addr),
    /// `call`: pushes `back` and continues at `to`.
    Call {
        /// The address of the function.
        to: Addr,
        /// The return address.
        back: Addr,
    },
    /// `call *slot(%rip)`: pushes `back` and continues at the address in the slot.
    CallThrough {
        /// The address of the slot, which holds the function's address.
        slot: Addr,
        /// The return address.
        back: Addr,
    },
    /// `ret`.
    Return,
    /// `xor %eax,%eax`, with prefixes that make the instruction as long as a call: the replacement of a call of a
    /// function that returns 0.
    Zero(Addr),
}

/// cs cs cs xor %eax,%eax
pub const ZERO: [u8; 5] = [0x2e, 0x2e, 0x2e, 0x31, 0xc0];

/// The address-size prefix. A branch with a 32-bit displacement has no memory operand, so this prefix only makes the
/// branch a byte longer.
const ADDR32: u8 = 0x67;

impl InstructionEffect {
    /// Returns the effect of `bytes` at `at` if they are exactly one instruction of this enum. Any number of INT3 may
    /// follow an instruction after which execution does not fall through.
    #[must_use]
    #[inline]
    pub fn of(at: Addr, bytes: &[u8]) -> Option<InstructionEffect> {
        let behind = at + wide(bytes.len());
        match *bytes {
            [0xe9, a, b, c, d] => Some(InstructionEffect::Jump(near(behind, [a, b, c, d]))),
            [0xe8, a, b, c, d] => Some(InstructionEffect::Call { to: near(behind, [a, b, c, d]), back: behind }),
            [0xeb, short] => Some(InstructionEffect::Jump(behind.offset(i8::from_le_bytes([short]).into()))),
            _ if NOPS.get(bytes.len().wrapping_sub(1)).is_some_and(|nop| *nop == bytes) => {
                Some(InstructionEffect::Next(behind))
            }
            [ADDR32, 0xe9, a, b, c, d] => Some(InstructionEffect::Jump(near(behind, [a, b, c, d]))),
            [ADDR32, 0xe8, a, b, c, d] => {
                Some(InstructionEffect::Call { to: near(behind, [a, b, c, d]), back: behind })
            }
            [0xff, 0x25, a, b, c, d] => Some(InstructionEffect::JumpThrough(near(behind, [a, b, c, d]))),
            [0xff, 0x15, a, b, c, d] => {
                Some(InstructionEffect::CallThrough { slot: near(behind, [a, b, c, d]), back: behind })
            }
            [0xc3] => Some(InstructionEffect::Return),
            _ if bytes == ZERO => Some(InstructionEffect::Zero(behind)),
            [0xc3 | 0xe9 | 0xeb | 0xff, .., INT3] => InstructionEffect::padded(at, bytes),
            _ => None,
        }
    }

    /// Decodes an instruction that does not fall through, followed by INT3. The last bytes of a displacement may be
    /// INT3 too, so only instructions with a length that the first bytes determine are accepted.
    fn padded(at: Addr, bytes: &[u8]) -> Option<InstructionEffect> {
        let len = match bytes[0] {
            0xc3 => 1,
            0xeb => 2,
            0xe9 => 5,
            0xff if bytes.get(1) == Some(&0x25) => 6,
            _ => return None,
        };
        let (instruction, rest) = bytes.split_at_checked(len)?;
        if rest.is_empty() || rest.iter().any(|byte| *byte != INT3) {
            return None;
        }
        InstructionEffect::of(at, instruction)
    }
}

fn near(behind: Addr, distance: [u8; 4]) -> Addr {
    behind.offset(i32::from_le_bytes(distance).into())
}

/// Returns whether `bytes` at `at` are exactly one instruction of any kind. INT3 may follow an instruction that does
/// not fall through.
#[must_use]
#[inline]
pub fn is_one_instruction(at: Addr, bytes: &[u8]) -> bool {
    InstructionEffect::of(at, bytes).is_some() || decodes_as_one(at, bytes)
}

#[cold]
fn decodes_as_one(at: Addr, bytes: &[u8]) -> bool {
    let instruction = Decoder::with_ip(64, bytes, at.get(), DecoderOptions::NONE).decode();
    !instruction.is_invalid() && instruction.len() == bytes.len()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};

    use super::{InstructionEffect, ZERO, is_one_instruction};
    use crate::{Addr, NOPS, index};

    const AT: Addr = Addr::new(0x40_0ff0);

    /// Returns the effect that iced-x86 decodes from the same bytes.
    fn decoded(bytes: &[u8]) -> Option<InstructionEffect> {
        let instruction = Decoder::with_ip(64, bytes, AT.get(), DecoderOptions::NONE).decode();
        let behind = AT + crate::wide(instruction.len());
        let near = Addr::new(instruction.near_branch_target());
        let slot = || Addr::new(instruction.ip_rel_memory_address());
        let relative = instruction.op0_kind() == OpKind::Memory && instruction.memory_base() == Register::RIP;
        match instruction.mnemonic() {
            Mnemonic::Jmp if relative => Some(InstructionEffect::JumpThrough(slot())),
            Mnemonic::Jmp => Some(InstructionEffect::Jump(near)),
            Mnemonic::Call if relative => Some(InstructionEffect::CallThrough { slot: slot(), back: behind }),
            Mnemonic::Call => Some(InstructionEffect::Call { to: near, back: behind }),
            Mnemonic::Ret if instruction.op_count() == 0 => Some(InstructionEffect::Return),
            Mnemonic::Nop | Mnemonic::Xchg => Some(InstructionEffect::Next(behind)),
            Mnemonic::Xor => Some(InstructionEffect::Zero(behind)),
            _ => None,
        }
    }

    #[test]
    fn every_form_is_what_a_decoder_says() {
        let forms: [&[u8]; 14] = [
            &[0xe9, 0x10, 0, 0, 0],
            &[0xe9, 0xcc, 0xcc, 0xcc, 0xcc],
            &[0xe8, 0xf0, 0xff, 0xff, 0xff],
            &[0xeb, 0xfe],
            &[0xeb, 0xcc],
            &[0x67, 0xe9, 1, 2, 3, 4],
            &[0x67, 0xe8, 1, 2, 3, 0x84],
            &[0xff, 0x25, 1, 2, 3, 4],
            &[0xff, 0x15, 1, 2, 3, 0xcc],
            &[0xc3],
            &ZERO,
            &[0xc3, 0xcc, 0xcc, 0xcc, 0xcc],
            &[0xeb, 0x7f, 0xcc, 0xcc, 0xcc],
            &[0xe9, 0x10, 0, 0, 0, 0xcc],
        ];
        for form in forms.into_iter().chain(NOPS) {
            assert_eq!(InstructionEffect::of(AT, form), decoded(form), "{form:02x?}");
            assert!(InstructionEffect::of(AT, form).is_some() && is_one_instruction(AT, form), "{form:02x?}");
        }
    }

    #[test]
    fn what_is_more_or_less_than_one_instruction_is_none() {
        let others: [&[u8]; 11] = [
            &[],
            &[0xe9, 0, 0, 0],
            &[0x90, 0x90],
            &[0x90; 5],
            &[0xc3, 0x90],
            &[0xc3, 0xcc, 0x90],
            &[0xe8, 0, 0, 0, 0, 0xcc],
            &[0xff, 0x15, 1, 2, 3, 4, 0xcc],
            &[0xe9, 0xcc],
            &[0xeb, 0x00, 0x90],
            &[0x0f, 0x1f, 0x44, 0x00],
        ];
        for other in others {
            assert_eq!(
                (InstructionEffect::of(AT, other), is_one_instruction(AT, other)),
                (None, false),
                "{other:02x?}"
            );
        }
    }

    #[test]
    fn any_other_instruction_counts_as_one_and_has_no_step() {
        for other in [&[0x48, 0x89, 0xe5][..], &[0xcc], &[0x0f, 0x0b], &[0xf3, 0x0f, 0x1e, 0xfa], &[0xff, 0xd0]] {
            assert_eq!((InstructionEffect::of(AT, other), is_one_instruction(AT, other)), (None, true), "{other:02x?}");
        }
    }

    #[test]
    fn short_random_bytes_agree_with_the_decoder() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = (state ^ state >> 29).to_le_bytes();
            let opcodes = [0xe9, 0xe8, 0xeb, 0xc3, 0xff, 0x67, 0x0f, 0x66, 0x2e, 0x90];
            let mut bytes = word;
            bytes[0] = opcodes[index(u64::from(word[0])) % opcodes.len()];
            let bytes = &bytes[..1 + index(u64::from(word[7])) % 7];
            if let Some(step) = InstructionEffect::of(AT, bytes) {
                assert_eq!(Some(step), decoded(bytes), "{bytes:02x?}");
            }
        }
    }
}
