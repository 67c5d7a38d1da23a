//! The calls through a table, and the code of Linux's operations, for x86-64.
//!
//! Another processor has to provide: the decoding of a call through an entry of a table ([`called_through`],
//! [`direct`]), the reach of a direct call ([`beyond_reach`]), and the instructions of the operations that a process can do
//! itself. Linux has paravirtual operations in modules on x86 only; elsewhere the table of operations is empty.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};
use modload_edit::{Addr, BRANCH_LEN, NOP, encode_call, encode_jump, wide};

/// mov %rdi,%rax
pub(crate) const IDENTITY: &[u8] = &[0x48, 0x89, 0xf8];
/// mov %rsi,(%rdi)
pub(crate) const STORE: &[u8] = &[0x48, 0x89, 0x37];
/// pushf; pop %rax
pub(crate) const FLAGS: &[u8] = &[0x9c, 0x58];
/// xor %eax,%eax
pub(crate) const ZERO: &[u8] = &[0x31, 0xc0];
/// pause
pub(crate) const PAUSE: &[u8] = &[0xf3, 0x90];
/// movb $0,(%rdi)
pub(crate) const UNLOCK: &[u8] = &[0xc6, 0x07, 0x00];

/// The length of a call or a jump through an entry of a table.
pub(crate) const THROUGH_LEN: usize = 6;

/// Returns the address of the call or the jump whose displacement is at `operand`.
pub(crate) fn branch_of(operand: Addr) -> Addr {
    operand.offset(-2)
}

/// Returns the direct call of `target`, or the direct jump, that replaces a call or a jump through an entry. Returns
/// `None` if `branch` is another instruction, or if `target` is out of reach.
pub(crate) fn direct(branch: &[u8], at: Addr, target: Addr) -> Option<[u8; THROUGH_LEN]> {
    let [a, b, c, d, e] = match branch {
        [0xff, 0x15, _, _, _, _] => encode_call(at, target)?, // call *entry(%rip)
        [0xff, 0x25, _, _, _, _] => encode_jump(at, target)?, // jmp *entry(%rip)
        _ => return None,
    };
    Some([a, b, c, d, e, NOP])
}

/// Returns the distance between the reach of a direct call at `at` and a `target` beyond this reach.
pub(crate) fn beyond_reach(at: Addr, target: Addr) -> u64 {
    let distance = target - (at + wide(BRANCH_LEN));
    let reach = if distance < 0 { i64::from(i32::MIN) } else { i64::from(i32::MAX) };
    (distance - reach).unsigned_abs()
}

/// Returns the address of the pointer that a call uses, if these bytes are exactly one indirect call.
pub(crate) fn called_through(at: Addr, site: &[u8]) -> Option<Addr> {
    let call = Decoder::with_ip(64, site, at.get(), DecoderOptions::NONE).decode();
    if call.mnemonic() != Mnemonic::Call || call.op0_kind() != OpKind::Memory || call.len() != site.len() {
        return None;
    }
    if call.is_ip_rel_memory_operand() {
        return Some(Addr::new(call.ip_rel_memory_address()));
    }
    let absolute = call.memory_base() == iced_x86::Register::None && call.memory_index() == iced_x86::Register::None;
    absolute.then(|| Addr::new(call.memory_displacement64()))
}
