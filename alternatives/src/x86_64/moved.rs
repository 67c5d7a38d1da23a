//! Instructions that are copied to another address without changing their meaning.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use modload_edit::Addr;

use crate::RewriteProblem;

/// Returns the length of the first instruction.
pub(crate) fn length(bytes: &[u8]) -> Option<usize> {
    first(Addr::NULL, bytes).map(|instruction| instruction.len())
}

/// Decodes the first instruction, if it is complete.
pub(crate) fn first(at: Addr, bytes: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::with_ip(64, bytes, at.get(), DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Returns whether these bytes are a sequence of complete instructions.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while !rest.is_empty() {
        match length(rest) {
            Some(length) => rest = &rest[length..],
            None => return false,
        }
    }
    true
}

/// Adjusts instructions that were copied from `from` to `to`, so that they refer to the same targets as before:
/// relative branches that leave the copy, and operands relative to the instruction pointer.
pub(crate) fn retarget(bytes: &mut [u8], from: Addr, to: Addr) -> Result<(), RewriteProblem> {
    let source = bytes.to_vec();
    let end = from + modload_edit::wide(source.len());
    let mut decoder = Decoder::with_ip(64, &source, from.get(), DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return Err(RewriteProblem::ReplacementCut);
        }
        let fields = decoder.get_constant_offsets(&instruction);
        let (offset, size, target) = if instruction.is_ip_rel_memory_operand() {
            let target = instruction.ip_rel_memory_address();
            (fields.displacement_offset(), fields.displacement_size(), target)
        } else if is_relative_branch(&instruction) {
            let target = Addr::new(instruction.near_branch_target());
            if target >= from && target <= end {
                continue;
            }
            (fields.immediate_offset(), fields.immediate_size(), target.get())
        } else {
            continue;
        };
        let target = Addr::new(target);
        let moved = target - Addr::new(instruction.next_ip()).offset(to - from);
        let field = &mut bytes[start + offset..start + offset + size];
        let fits = match size {
            1 => i8::try_from(moved).is_ok(),
            4 => i32::try_from(moved).is_ok(),
            _ => false,
        };
        if !fits {
            return Err(RewriteProblem::OutOfReach(target));
        }
        field.copy_from_slice(&moved.to_le_bytes()[..size]);
    }
    Ok(())
}

/// Returns whether an instruction is a near branch with a displacement.
fn is_relative_branch(instruction: &Instruction) -> bool {
    instruction.op_count() != 0 && instruction.op0_kind() == OpKind::NearBranch64
}

/// The kind of a near branch with a displacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NearBranch {
    Call,
    Jump,
    Conditional,
}

/// Returns the kind of a near branch with a 32-bit displacement.
pub(crate) fn near_branch(instruction: &Instruction) -> Option<NearBranch> {
    if !is_relative_branch(instruction) || !matches!(instruction.len(), 5 | 6) {
        return None;
    }
    match instruction.mnemonic() {
        Mnemonic::Call => Some(NearBranch::Call),
        Mnemonic::Jmp => Some(NearBranch::Jump),
        Mnemonic::Xbegin => None,
        _ => Some(NearBranch::Conditional),
    }
}

/// Returns the address of the pointer that a call uses, if the call is indirect through a pointer relative to the
/// instruction pointer.
pub(crate) fn call_through(instruction: &Instruction) -> Option<Addr> {
    let call = instruction.mnemonic() == Mnemonic::Call && instruction.is_ip_rel_memory_operand();
    call.then(|| Addr::new(instruction.ip_rel_memory_address()))
}
