//! Plans a module's call frame information from the relocated `.eh_frame`.

use std::ops::Range;

use modload_abi::section;
use modload_threads::frames;

use crate::elf::file::File;
use crate::prepare::error::PrepareError;
use crate::prepare::frames::FramesPlan;
use crate::prepare::layout::{MemoryPart, ModuleLayout, Spot};
use crate::prepare::memory::Staging;
use crate::prepare::tables::tables;
use crate::prepare::x86_64::{THUNK, THUNKS};

/// The texts of a module, in the order of [`FramesPlan`]'s rows.
const TEXTS: [MemoryPart; 2] = [MemoryPart::Text, MemoryPart::InitText];

/// Reads the module's `.eh_frame`, which is relocated.
pub(crate) fn plan(file: &File<'_>, layout: &ModuleLayout, memory: &Staging) -> Result<FramesPlan, PrepareError> {
    let ranges = memory.ranges();
    let texts: [Range<u64>; 2] = TEXTS.map(|part| {
        let (start, len) = ranges[part.slot()];
        start.get()..start.get() + len
    });
    let sections = tables(file, layout, memory, section::EH_FRAME).map(|(at, bytes)| (bytes, at.get()));
    let branches = branches(layout).map(|(spot, size)| {
        let start = memory.addr(spot).get();
        start..start + size
    });
    let planned = frames::plan(sections, &branches, &texts)
        .map_err(|error| PrepareError::Frames { section: section::EH_FRAME, error })?;
    let mut planned = planned.into_iter().map(|planned| Some(planned).filter(|planned| !planned.is_empty()));
    Ok(FramesPlan(TEXTS.map(|_| planned.next().flatten())))
}

/// Returns the code that the loader has written into the text and that never moves the stack pointer: PLT entries,
/// thunks and resolvers.
fn branches(layout: &ModuleLayout) -> [(Spot, u64); 4] {
    let thunks = layout.thunks.map(|spot| (spot, THUNK * (THUNKS + 1)));
    let plt = (layout.plt, layout.slots.plt_size());
    let resolvers = layout.resolvers.map(|spot| (spot, modload_tls::RESOLVERS_SIZE));
    let none = (layout.plt, 0);
    [plt, (layout.indirect_plt, layout.indirect.plt_size()), thunks.unwrap_or(none), resolvers.unwrap_or(none)]
}
