//! Relaxation: instructions that load an address from a GOT slot are rewritten to use the symbol's address itself, as
//! GNU ld does when it links a position-independent executable.

/// An instruction with a rip-relative operand whose last part is the 32-bit displacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RelaxableForm {
    /// `mov foo@GOTPCREL(%rip), %reg` becomes `lea foo(%rip), %reg`.
    Mov,
    /// `call *foo@GOTPCREL(%rip)` becomes `addr32 call foo`.
    Call,
    /// `jmp *foo@GOTPCREL(%rip)` becomes `jmp foo; nop`.
    Jmp,
}

/// The number of bytes before the field that determine the form: the opcode and the ModRM byte. A REX prefix before
/// them stays unchanged.
pub(crate) const OPCODE: u64 = 2;

/// The addend of an operand that is the slot itself and the last part of its instruction. With another addend the
/// instruction cannot be rewritten.
pub(crate) const ADDEND: i64 = -4;

/// Returns whether an instruction with `opcode` bytes before the field ([`crate::RelocRow::opcode`]) may begin with the
/// byte `first`: three bytes need a REX prefix.
#[inline]
pub(crate) fn may_begin(opcode: u8, first: Option<u8>) -> bool {
    opcode != 3 || first.is_some_and(|rex| rex & 0xf0 == 0x40)
}

impl RelaxableForm {
    /// Returns the form of the instruction with this opcode and this ModRM byte, or `None` if it cannot be rewritten.
    #[inline]
    pub(crate) fn of(opcode: u8, modrm: u8) -> Option<RelaxableForm> {
        match (opcode, modrm) {
            (0x8b, _) if modrm & 0xc7 == 0x05 => Some(RelaxableForm::Mov),
            (0xff, 0x15) => Some(RelaxableForm::Call),
            (0xff, 0x25) => Some(RelaxableForm::Jmp),
            _ => None,
        }
    }

    /// Returns how many bytes lower the new displacement is than the old one.
    #[inline]
    pub(crate) fn displacement_shift(self) -> i64 {
        match self {
            RelaxableForm::Mov | RelaxableForm::Call => 0,
            // The new opcode has one byte instead of two, so the displacement moves down by one.
            RelaxableForm::Jmp => 1,
        }
    }

    /// Returns opcode, ModRM byte and displacement of the new instruction.
    #[inline]
    pub(crate) fn encode(self, modrm: u8, displacement: [u8; 4]) -> [u8; 6] {
        let [a, b, c, d] = displacement;
        match self {
            RelaxableForm::Mov => [0x8d, modrm, a, b, c, d], // lea disp(%rip), %reg
            RelaxableForm::Call => [0x67, 0xe8, a, b, c, d], // addr32 call disp
            RelaxableForm::Jmp => [0xe9, a, b, c, d, 0x90],  // jmp disp; nop
        }
    }
}
