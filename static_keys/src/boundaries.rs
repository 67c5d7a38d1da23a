//! Whether records mean whole instructions: the functions that hold their sites are decoded from their beginnings.

use iced_x86::{Decoder, DecoderOptions, Instruction};
use modload_edit::{Addr, Why, disassembled, index, wide};
use modload_loader::{Coming, Refusal};

/// Demands that an instruction begins at every site.
pub(crate) fn check(coming: &Coming<'_>, mut sites: Vec<(Addr, Why)>) -> Result<(), Refusal> {
    sites.sort_unstable_by_key(|(at, _)| *at);
    let functions = coming.functions();
    let mut sites = sites.iter().peekable();
    while let Some(&&(first, why)) = sites.peek() {
        let outside = || Refusal::from(format!("{why}: its site is not within text"));
        let (start, text) = coming.text(first).ok_or_else(outside)?;
        // Code before the first function of a part begins with the part.
        let place = functions.partition_point(|function| *function <= first);
        let begin = place.checked_sub(1).map_or(start, |before| functions[before].max(start));
        let end = start + wide(text.len());
        let next = functions.get(place).copied().unwrap_or(end).min(end);
        let code = text.get(index((begin - start).cast_unsigned())..).ok_or_else(outside)?;
        let mut decoder = Decoder::with_ip(64, code, begin.get(), DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        // All sites of one function in one go.
        while let Some((at, why)) = sites.next_if(|(at, _)| *at < next) {
            while decoder.ip() < at.get() && decoder.can_decode() {
                decoder.decode_out(&mut instruction);
            }
            if decoder.ip() != at.get() {
                let cut = Addr::new(instruction.ip());
                let from = index((cut - start).cast_unsigned());
                let bytes = text.get(from..from + instruction.len()).unwrap_or_default();
                let place = coming.module().display_place(cut).unwrap_or_else(|| cut.to_string());
                let shown = disassembled(cut, bytes);
                let inside = *at - cut;
                return Err(format!("{why}: its site is byte {inside} of the instruction at {place} ({shown})").into());
            }
        }
    }
    Ok(())
}
