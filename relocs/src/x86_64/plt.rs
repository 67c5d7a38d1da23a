//! PLT entries.

use modload_edit::{Addr, INT3, wide};

use crate::RelocField;

/// The size of a PLT entry.
pub(crate) const ENTRY: u64 = 16;

/// The bytes of an entry before it is written: the INT3 with which text memory is filled initially.
pub(crate) const UNWRITTEN: [u8; 16] = [INT3; 16];

/// The offset of the first INT3 of an entry, after the jump.
pub(crate) const TRAP: u64 = 10;

/// R_X86_64_PC32: the kind of the displacement in an entry's jump.
pub(crate) const DISPLACEMENT_KIND: u32 = 2;

/// A PLT entry with a displacement of zero. The entry begins with an ENDBR, so that code compiled with -fcf-protection
/// may take its address and call it indirectly.
const PLT_ENTRY: [u8; 16] = [
    0xf3, 0x0f, 0x1e, 0xfa, // endbr64
    0xff, 0x25, 0x00, 0x00, 0x00, 0x00, // jmp *slot(%rip)
    INT3, INT3, INT3, INT3, INT3, INT3,
];
/// The position of the displacement in a PLT entry. The jump instruction ends where the displacement ends.
const DISPLACEMENT: std::ops::Range<usize> = 6..10;

/// Returns the entry for the address `at` that jumps through `slot`.
///
/// # Errors
/// The distance, if the slot is out of the reach of a [`RelocField::I32`].
pub(crate) fn entry(at: Addr, slot: Addr) -> Result<[u8; 16], i64> {
    let value = slot - (at + wide(DISPLACEMENT.end));
    if !RelocField::I32.fits(value) {
        return Err(value);
    }
    let mut new = PLT_ENTRY;
    new[DISPLACEMENT].copy_from_slice(&value.to_le_bytes()[..4]);
    Ok(new)
}
