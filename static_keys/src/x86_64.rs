//! The instructions at the sites of static keys and static calls, for x86-64.
//!
//! Another processor has to provide: the lengths of a site and the jump that fits it ([`jump_len`], [`encode_jump_of`]), the
//! forms that the site of a static call can have ([`is_call_form`], [`is_tail_form`]), an empty trampoline with the
//! bytes that mark one ([`EMPTY_TRAMPOLINE`], [`TRAMPOLINE_MARK`]), a jump to any address ([`far_jump`]), a function
//! that returns 0 ([`RETURN0`]), and where instructions begin ([`InstructionStarts`]). Linux:
//! `arch/x86/kernel/{jump_label,static_call}.c`.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use modload_edit::{Addr, BRANCH_LEN, INT3, NOPS, ZERO, encode_jump};

/// The length of the longest instruction.
pub(crate) const LONGEST: usize = 15;

/// The length of the site of a static call, and of the branch of a trampoline.
pub(crate) const CALL_LEN: usize = BRANCH_LEN;

/// The NOP that replaces a call.
pub(crate) const CALL_NOP: [u8; CALL_LEN] = [NOPS[4][0], NOPS[4][1], NOPS[4][2], NOPS[4][3], NOPS[4][4]];

/// The bytes after a trampoline: ud1 %esp,%ecx.
pub(crate) const TRAMPOLINE_MARK: [u8; 3] = [0x0f, 0xb9, 0xcc];

/// A trampoline to no function: ret; int3, followed by the bytes that mark a trampoline.
pub(crate) const EMPTY_TRAMPOLINE: [u8; CALL_LEN + TRAMPOLINE_MARK.len()] =
    [0xc3, INT3, INT3, INT3, INT3, TRAMPOLINE_MARK[0], TRAMPOLINE_MARK[1], TRAMPOLINE_MARK[2]];

/// xor %eax,%eax; ret
pub(crate) const RETURN0: [u8; 3] = [0x31, 0xc0, 0xc3];

/// Returns a jump to any address: jmp *0(%rip), followed by the address.
pub(crate) fn far_jump(to: Addr) -> Vec<u8> {
    [&[0xff, 0x25, 0, 0, 0, 0][..], &to.get().to_le_bytes()].concat()
}

/// Returns whether these bytes are a form of a call: a call, the NOP of 5 bytes, or a zero.
pub(crate) fn is_call_form(site: &[u8]) -> bool {
    site[0] == 0xe8 || site == CALL_NOP || site == ZERO
}

/// Returns whether these bytes are a form of a tail call: a jump or a return.
pub(crate) fn is_tail_form(site: &[u8]) -> bool {
    matches!(site[0], 0xe9 | 0xc3)
}

/// Returns the length of the site of a static key, 2 or 5 bytes, given the code from the site on. Returns `None` unless
/// the site is a NOP or the jump to `target`.
pub(crate) fn jump_len(site: Addr, target: Addr, code: &[u8]) -> Option<usize> {
    let instruction = Decoder::with_ip(64, code, site.get(), DecoderOptions::NONE).decode();
    let len = instruction.len();
    let nop = matches!(len, 2 | 5) && code.get(..len) == Some(NOPS[len - 1]);
    let jump = instruction.mnemonic() == Mnemonic::Jmp && Addr::new(instruction.near_branch_target()) == target;
    (nop || (jump && matches!(len, 2 | 5))).then_some(len)
}

/// Returns the jump of `len` bytes, 2 or 5, from a site to `target`, followed by zeros. Returns `None` if the target is
/// out of reach.
pub(crate) fn encode_jump_of(len: usize, site: Addr, target: Addr) -> Option<[u8; 5]> {
    if len != 2 {
        return encode_jump(site, target);
    }
    let [distance] = i8::try_from(target - (site + 2)).ok()?.to_le_bytes();
    Some([0xeb, distance, 0, 0, 0])
}

/// The starts of the instructions of some code, in ascending order.
pub(crate) struct InstructionStarts<'c> {
    decoder: Decoder<'c>,
    last: Instruction,
}

impl InstructionStarts<'_> {
    /// Decodes code whose first instruction begins at `at`.
    pub(crate) fn of(code: &[u8], at: Addr) -> InstructionStarts<'_> {
        let decoder = Decoder::with_ip(64, code, at.get(), DecoderOptions::NONE);
        InstructionStarts { decoder, last: Instruction::default() }
    }

    /// Returns `None` if an instruction begins at this address, and otherwise the address and the length of the last
    /// instruction that begins before this address. Addresses must be passed in ascending order.
    pub(crate) fn instruction_around(&mut self, at: Addr) -> Option<(Addr, usize)> {
        while self.decoder.ip() < at.get() && self.decoder.can_decode() {
            self.decoder.decode_out(&mut self.last);
        }
        (self.decoder.ip() != at.get()).then(|| (Addr::new(self.last.ip()), self.last.len()))
    }
}
