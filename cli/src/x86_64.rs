//! Disassembly of whole functions, for x86-64.
//!
//! Another processor has to provide: a decoder and a formatter of its instructions ([`decode`], [`plain_formatter`]).

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction};

/// One disassembled instruction.
pub(crate) struct DecodedInstruction {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    pub(crate) text: String,
}

/// Disassembles a function as if its address were 0, so that the output is the same in every run.
pub(crate) fn decode(bytes: &[u8], mut formatter: GasFormatter) -> Vec<DecodedInstruction> {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut lines = Vec::new();
    while decoder.can_decode() {
        let offset = decoder.position();
        decoder.decode_out(&mut instruction);
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        lines.push(DecodedInstruction { offset, len: decoder.position() - offset, text });
    }
    lines
}

/// Returns a formatter for code that is not loaded: operands are as in the file.
pub(crate) fn plain_formatter() -> GasFormatter {
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.options_mut().set_uppercase_hex(false);
    formatter
}
