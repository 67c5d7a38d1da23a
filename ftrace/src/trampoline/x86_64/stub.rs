//! The code of stubs, and their unwind rows.

use std::mem::offset_of;

use modload_edit::{Addr, INT3, wide};

use crate::trampoline::function::FunctionRecord;

/// The size in bytes of a stub, and of a half.
pub(crate) const STUB: u64 = 32;
const HALF: u64 = STUB / 2;

impl FunctionRecord {
    /// Returns the bytes of the function's stub.
    pub(crate) fn stub_code(&'static self) -> [u8; 32] {
        let mut code = [INT3; 32];
        let address = wide(std::ptr::from_ref(self).expose_provenance()).to_le_bytes();
        for (half, entry) in
            code.chunks_mut(16).zip([offset_of!(FunctionRecord, on_call), offset_of!(FunctionRecord, on_jump)])
        {
            // movabs $self,%r11
            half[..2].copy_from_slice(&[0x49, 0xbb]);
            half[2..10].copy_from_slice(&address);
            // jmp *entry(%r11)
            half[10..13].copy_from_slice(&[0x41, 0xff, 0x63]);
            half[13] = entry.to_le_bytes()[0];
        }
        code
    }
}

/// Returns the address of the second half of a stub.
pub(crate) fn second_half(stub: Addr) -> Addr {
    stub + HALF
}

/// Returns the unwind rows of stubs that lie side by side from an address that is a multiple of [`STUB`], as call frame
/// instructions. A thread in a stub continues at the function's target. In the first half, which sites call, that
/// address is on the stack already.
pub(crate) fn stub_rows() -> Vec<u8> {
    // rsp + 8 - ((rip & 16) >> 1)
    let cfa = [0x77, 8, 0x80, 0, 0x08, 16, 0x1a, 0x31, 0x25, 0x1c];
    // *((rip & -32) + 2) + target
    let target = offset_of!(FunctionRecord, target).to_le_bytes()[0];
    let rip = [0x80, 0, 0x09, 0xe0, 0x1a, 0x23, 2, 0x06, 0x23, target];
    let len = |bytes: &[u8]| bytes.len().to_le_bytes()[0];
    // DW_CFA_def_cfa_expression; DW_CFA_expression of rip.
    [&[0x0f, len(&cfa)][..], &cfa, &[0x10, 16, len(&rip)], &rip].concat()
}
