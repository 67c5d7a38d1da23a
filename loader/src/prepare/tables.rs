//! Sections by name, as relocated in memory.

use modload_edit::Addr;

use crate::elf::file::File;
use crate::prepare::layout::{ModuleLayout, Spot};
use crate::prepare::memory::Staging;

/// Returns the sections of this name with addresses and relocated bytes.
pub(crate) fn tables<'f>(
    file: &'f File<'_>,
    layout: &'f ModuleLayout,
    memory: &'f Staging,
    name: &'f str,
) -> impl Iterator<Item = (Addr, &'f [u8])> {
    numbered_tables(file, layout, memory, name).map(|(_, at, bytes)| (at, bytes))
}

/// Like [`tables`], with the numbers of the sections in the file.
pub(crate) fn numbered_tables<'f>(
    file: &'f File<'_>,
    layout: &'f ModuleLayout,
    memory: &'f Staging,
    name: &'f str,
) -> impl Iterator<Item = (u32, Addr, &'f [u8])> {
    (0..).zip(file.sections.iter().zip(&layout.sections)).filter_map(move |(number, (section, spot))| {
        let Spot { part, offset } = (*spot).filter(|_| section.name == name.as_bytes())?;
        let start = modload_edit::index(offset);
        let bytes = memory.bytes(part).get(start..start + modload_edit::index(section.size))?;
        Some((number, memory.addr(Spot { part, offset }), bytes))
    })
}
