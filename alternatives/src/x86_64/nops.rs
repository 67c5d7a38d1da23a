//! Sequences of NOPs.

use modload_edit::fill_with_nops;

/// Replaces runs of one-byte NOPs between instructions by long NOPs: Linux's `optimize_nops`. Stops at bytes that are
/// no instruction.
pub(crate) fn optimize(bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        if rest[0] == 0x90 {
            let run = rest.iter().take_while(|&&byte| byte == 0x90).count();
            if run > 1 {
                fill_with_nops(&mut rest[..run]);
            }
            at += run;
            continue;
        }
        match super::moved::length(rest) {
            Some(length) => at += length,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use modload_edit::NOPS;

    use super::super::moved::length;
    use super::optimize;

    #[test]
    fn each_nop_is_one_instruction_of_its_length() {
        for (nop, len) in NOPS.iter().zip(1..) {
            assert_eq!((nop.len(), length(nop)), (len, Some(len)));
        }
    }

    #[test]
    fn runs_become_long_and_a_single_one_stays() {
        let mut bytes = [0x90, 0xc3, 0x90, 0x90, 0x90, 0xb8, 0x90, 0x90, 0x90, 0x90, 0x90]; // nop; ret; nops; mov $..,%eax; nop
        optimize(&mut bytes);
        assert_eq!(bytes, [0x90, 0xc3, 0x0f, 0x1f, 0x00, 0xb8, 0x90, 0x90, 0x90, 0x90, 0x90]);
    }
}
