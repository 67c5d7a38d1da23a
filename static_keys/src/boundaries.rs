//! Checks that an instruction begins at every site: the functions that hold the sites are decoded from their first
//! byte.

use modload_edit::{Addr, EditOrigin, disassembled, index, wide};
use modload_loader::{Module, Refusal};
use thiserror::Error;

use crate::x86_64::InstructionStarts;

/// The site of a record is not the start of an instruction.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum NotAnInstruction {
    /// The site is not within text.
    #[error("{0}: its site is not within text")]
    Outside(EditOrigin),
    /// The site lies within an instruction.
    #[error("{why}: its site is byte {inside} of the instruction at {place} ({instruction})")]
    Inside {
        /// The record.
        why: EditOrigin,
        /// The offset of the site within the instruction, in bytes.
        inside: i64,
        /// The place of the instruction, as symbol and offset.
        place: String,
        /// The instruction, disassembled.
        instruction: String,
    },
}

impl From<NotAnInstruction> for Refusal {
    fn from(problem: NotAnInstruction) -> Refusal {
        problem.to_string().into()
    }
}

/// Fails unless an instruction begins at every site. `functions` are the start addresses of the module's functions,
/// sorted. `text` returns the text around an address, and the start of this text.
pub(crate) fn check<'t>(
    module: &Module,
    functions: &[Addr],
    text: &dyn Fn(Addr) -> Option<(Addr, &'t [u8])>,
    mut sites: Vec<(Addr, EditOrigin)>,
) -> Result<(), NotAnInstruction> {
    sites.sort_unstable_by_key(|(at, _)| *at);
    let mut sites = sites.iter().peekable();
    while let Some(&&(first, why)) = sites.peek() {
        let outside = || NotAnInstruction::Outside(why);
        let (start, text) = text(first).ok_or_else(outside)?;
        // Code before the first function of a part begins where the part begins.
        let place = functions.partition_point(|function| *function <= first);
        let begin = place.checked_sub(1).map_or(start, |before| functions[before].max(start));
        let end = start + wide(text.len());
        let next = functions.get(place).copied().unwrap_or(end).min(end);
        let code = text.get(index((begin - start).cast_unsigned())..).ok_or_else(outside)?;
        let mut starts = InstructionStarts::of(code, begin);
        // Checks all sites of one function in one pass.
        while let Some((at, why)) = sites.next_if(|(at, _)| *at < next) {
            if let Some((cut, len)) = starts.instruction_around(*at) {
                let from = index((cut - start).cast_unsigned());
                let bytes = text.get(from..from + len).unwrap_or_default();
                let place = module.display_place(cut).unwrap_or_else(|| cut.to_string());
                let (why, inside, instruction) = (*why, *at - cut, disassembled(cut, bytes));
                return Err(NotAnInstruction::Inside { why, inside, place, instruction });
            }
        }
    }
    Ok(())
}
