//! The NOPs, one of each length, and Linux's way to fill a range with them.

/// The shortest NOP, one byte long. Assemblers and compilers leave room for an instruction as a run of this byte.
pub const NOP: u8 = 0x90;

/// The NOPs of 1 to 8 bytes that Intel recommends. The NOP of `n` bytes is at index `n - 1`.
pub const NOPS: [&[u8]; 8] = [
    &[0x90],                                           // nop
    &[0x66, 0x90],                                     // xchg %ax,%ax
    &[0x0f, 0x1f, 0x00],                               // nopl (%rax)
    &[0x0f, 0x1f, 0x40, 0x00],                         // nopl 0(%rax)
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],                   // nopl 0(%rax,%rax,1)
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],             // nopw 0(%rax,%rax,1)
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],       // nopl 0L(%rax)
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00], // nopl 0L(%rax,%rax,1)
];

/// Fills a range with NOPs, the longest first, like Linux's `add_nops`.
pub fn fill_with_nops(mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        let len = bytes.len().min(NOPS.len());
        let (first, rest) = bytes.split_at_mut(len);
        first.copy_from_slice(NOPS[len - 1]);
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::{NOPS, fill_with_nops};

    #[test]
    fn the_longest_come_first() {
        assert!(NOPS.iter().zip(1..).all(|(nop, len)| nop.len() == len));
        let mut bytes = [0; 19];
        fill_with_nops(&mut bytes);
        assert_eq!(bytes[..8], *NOPS[7]);
        assert_eq!(bytes[8..16], *NOPS[7]);
        assert_eq!(bytes[16..], *NOPS[2]);
    }
}
