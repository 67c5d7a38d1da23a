//! The ABI's instruction sequences that access thread-local variables, and what GNU ld makes of each in an executable,
//! where every variable has a fixed offset from the thread pointer. ELF Handling For Thread-Local Storage, section 5.

/// The general dynamic sequence: 16 bytes, the field at offset 4, the field of the call at offset 12.
pub(crate) struct GeneralDynamic;

impl GeneralDynamic {
    /// The distance from the start of the sequence to the field.
    pub(crate) const BEFORE: u64 = 4;
    /// The distance from the field to the field of the call.
    pub(crate) const CALL: u64 = 8;

    /// Returns whether this is the sequence: `data16 lea x@tlsgd(%rip),%rdi` and a call of `__tls_get_addr`, direct or
    /// through its GOT slot.
    pub(crate) fn is(code: &[u8; 16]) -> bool {
        code[..4] == [0x66, 0x48, 0x8d, 0x3d]
            && matches!(code[8..12], [0x66, 0x66, 0x48, 0xe8] | [0x66, 0x48, 0xff, 0x15])
    }

    /// The first bytes of a direct call of `__tls_get_addr`, which take the place of an indirect call's.
    pub(crate) const DIRECT_CALL: [u8; 4] = [0x66, 0x66, 0x48, 0xe8];

    /// Returns `mov %fs:0,%rax; lea offset(%rax),%rax`.
    pub(crate) fn relaxed(offset: [u8; 4]) -> [u8; 16] {
        let [a, b, c, d] = offset;
        [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x8d, 0x80, a, b, c, d]
    }
}

/// The local dynamic sequence: the field at offset 3, then a call of `__tls_get_addr`.
pub(crate) enum LocalDynamic {
    /// A direct call: 12 bytes.
    Direct,
    /// A call through the GOT slot: 13 bytes.
    Indirect,
}

impl LocalDynamic {
    /// The distance from the start of the sequence to the field.
    pub(crate) const BEFORE: u64 = 3;

    /// Returns the sequence at the start of the code, if there is one.
    pub(crate) fn of(code: &[u8]) -> Option<LocalDynamic> {
        let call = code.strip_prefix(&[0x48, 0x8d, 0x3d])?.get(4..)?;
        match call {
            [0xe8, _, _, _, _, ..] => Some(LocalDynamic::Direct),
            [0xff, 0x15, _, _, _, _, ..] => Some(LocalDynamic::Indirect),
            _ => None,
        }
    }

    /// Returns the distance from the field to the field of the call.
    pub(crate) fn call(&self) -> u64 {
        match self {
            LocalDynamic::Direct => 5,
            LocalDynamic::Indirect => 6,
        }
    }

    /// Returns `mov %fs:0,%rax` with prefixes that fill the length of the sequence.
    pub(crate) fn relaxed(&self) -> &'static [u8] {
        const PADDED: [u8; 13] = [0x66, 0x66, 0x66, 0x66, 0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0];
        match self {
            LocalDynamic::Direct => &PADDED[1..],
            LocalDynamic::Indirect => &PADDED,
        }
    }
}

/// An initial exec access: REX prefix, opcode, ModRM byte and field.
pub(crate) struct InitialExec;

impl InitialExec {
    /// The distance from the start of the instruction to the field.
    pub(crate) const BEFORE: u64 = 3;

    /// Returns the instruction that uses the offset itself, or `None` if this is neither
    /// `mov x@gottpoff(%rip),%reg` nor `add x@gottpoff(%rip),%reg`.
    pub(crate) fn relaxed(code: &[u8; 7], offset: [u8; 4]) -> Option<[u8; 7]> {
        let [rex, opcode, modrm, ..] = *code;
        if rex & 0xfb != 0x48 || modrm & 0xc7 != 0x05 {
            return None;
        }
        let [a, b, c, d] = offset;
        // The register moves from the ModRM byte's middle field to its last one, and its high bit from REX.R to REX.B.
        let (register, high) = (modrm >> 3 & 7, rex >> 2 & 1);
        match (opcode, register) {
            // mov $offset,%reg
            (0x8b, _) => Some([0x48 | high, 0xc7, 0xc0 | register, a, b, c, d]),
            // lea offset(%reg),%reg would need a longer form for %rsp and %r12: add $offset,%reg
            (0x03, 4) => Some([0x48 | high, 0x81, 0xc0 | register, a, b, c, d]),
            // lea offset(%reg),%reg
            (0x03, _) => Some([0x48 | high | high << 2, 0x8d, 0x80 | register << 3 | register, a, b, c, d]),
            _ => None,
        }
    }
}

/// Returns the instruction that `lea x@tlsdesc(%rip),%reg` becomes: `mov $offset,%reg`; `None` for any other
/// instruction.
pub(crate) fn descriptor_load(code: &[u8; 7], offset: [u8; 4]) -> Option<[u8; 7]> {
    let [rex, opcode, modrm, ..] = *code;
    if rex & 0xfb != 0x48 || opcode != 0x8d || modrm & 0xc7 != 0x05 {
        return None;
    }
    let [a, b, c, d] = offset;
    Some([0x48 | rex >> 2 & 1, 0xc7, 0xc0 | modrm >> 3 & 7, a, b, c, d])
}

/// The call through a descriptor: `call *x@tlscall(%rax)`.
pub(crate) struct DescriptorCall;

impl DescriptorCall {
    /// The call.
    pub(crate) const CODE: [u8; 2] = [0xff, 0x10];
    /// The call of a relaxed access: `xchg %ax,%ax`.
    pub(crate) const RELAXED: [u8; 2] = [0x66, 0x90];
}

#[cfg(test)]
mod tests {
    use super::InitialExec;

    #[test]
    fn an_initial_exec_access_keeps_its_register() {
        let relaxed = |code: [u8; 3]| {
            let [a, b, c] = code;
            InitialExec::relaxed(&[a, b, c, 0, 0, 0, 0], [1, 2, 3, 4]).map(|new| [new[0], new[1], new[2]])
        };
        assert_eq!(relaxed([0x48, 0x8b, 0x05]), Some([0x48, 0xc7, 0xc0])); // %rax
        assert_eq!(relaxed([0x4c, 0x8b, 0x3d]), Some([0x49, 0xc7, 0xc7])); // %r15
        assert_eq!(relaxed([0x48, 0x03, 0x05]), Some([0x48, 0x8d, 0x80])); // %rax
        assert_eq!(relaxed([0x4c, 0x03, 0x0d]), Some([0x4d, 0x8d, 0x89])); // %r9
        assert_eq!(relaxed([0x48, 0x03, 0x25]), Some([0x48, 0x81, 0xc4])); // %rsp
        assert_eq!(relaxed([0x4c, 0x03, 0x25]), Some([0x49, 0x81, 0xc4])); // %r12
        for other in [[0x48, 0x8b, 0x04], [0x48, 0x2b, 0x05], [0x8b, 0x05, 0x00], [0x49, 0x8b, 0x05]] {
            assert_eq!(relaxed(other), None, "{other:x?}");
        }
    }
}
