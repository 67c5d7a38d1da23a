//! Code in readable form.

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction};

use crate::Addr;

/// Returns the instructions in `bytes` at `at`, in the syntax of GNU as, separated by `; `.
#[must_use]
pub fn disassembled(at: Addr, bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(64, bytes, at.get(), DecoderOptions::NONE);
    let mut formatter = formatter();
    let mut instruction = Instruction::default();
    let mut text = String::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if !text.is_empty() {
            text.push_str("; ");
        }
        formatter.format(&instruction, &mut text);
    }
    text
}

/// Returns a formatter that writes the syntax of GNU as.
#[must_use]
pub fn formatter() -> GasFormatter {
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_branch_leading_zeros(false);
    options.set_uppercase_hex(false);
    options.set_show_branch_size(false);
    options.set_displacement_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    formatter
}

#[cfg(test)]
mod tests {
    use super::disassembled;
    use crate::Addr;

    #[test]
    fn instructions_are_shown_as_gas_reads_them() {
        let bytes = [0xe8, 0xfb, 0x0f, 0x00, 0x00, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3];
        assert_eq!(disassembled(Addr::new(0x1000), &bytes), "call 0x2000; nopl (%rax,%rax); ret");
        assert_eq!(disassembled(Addr::new(0x1000), &[0xe8, 0]), "(bad)");
    }
}
