//! Addresses of sections: given ones, and for other sections those of Linux.

use std::collections::HashMap;

use modload_abi::section;
use modload_edit::{Addr, RecordTable, wide};
use object::elf;

use crate::elf::error::ObjectError;
use crate::elf::file::{File, FileSection};
use crate::prepare::error::PrepareError;
use crate::vocabulary::escape::escaped;

const PAGE: u64 = 4096;

/// The groups in which Linux lays sections out, each beginning on a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LayoutGroup {
    Text,
    ReadOnly,
    RoAfterInit,
    Data,
}

const GROUPS: [LayoutGroup; 4] =
    [LayoutGroup::Text, LayoutGroup::ReadOnly, LayoutGroup::RoAfterInit, LayoutGroup::Data];

/// Which of Linux's two allocations a section belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Allocation {
    Core,
    Init,
}

fn group(section: &FileSection<'_>) -> LayoutGroup {
    let named = |name: &str| section.name == name.as_bytes();
    let has = |flag| section.flags.contains(flag);
    if has(elf::SHF_EXECINSTR) {
        LayoutGroup::Text
    } else if !has(elf::SHF_WRITE) {
        LayoutGroup::ReadOnly
    } else if named(section::RO_AFTER_INIT) || named(section::JUMP_TABLE) {
        LayoutGroup::RoAfterInit
    } else {
        LayoutGroup::Data
    }
}

fn part(section: &FileSection<'_>) -> Allocation {
    if section.name.starts_with(section::INIT_SECTION_PREFIX.as_bytes()) { Allocation::Init } else { Allocation::Core }
}

/// Whether Linux keeps the section in the module's memory. Linux reads other sections from the file, or allocates them
/// separately.
fn is_placed(section: &FileSection<'_>) -> bool {
    let apart = [section::MODINFO, section::VERSIONS, section::PERCPU];
    section.kept && !apart.iter().any(|name| section.name == name.as_bytes())
}

/// Returns the address of each section, by index. Linux's `layout_sections` determines the distances between sections,
/// so one given address determines the addresses of all sections of the same allocation.
pub(super) fn places(file: &File<'_>, given: &HashMap<String, Addr>) -> Result<Vec<Option<Addr>>, PrepareError> {
    let offsets = offsets(file)?;
    let address = |section: &FileSection<'_>| given.get(std::str::from_utf8(section.name).ok()?).copied();
    let base = |wanted: Allocation| {
        let mut known = file.sections.iter().zip(&offsets).filter_map(|(section, offset)| {
            let offset = (*offset).filter(|_| part(section) == wanted && section.size != 0)?;
            Some(address(section)?.get().wrapping_sub(offset))
        });
        known.next()
    };
    let bases = [base(Allocation::Core), base(Allocation::Init)];
    let placed = file.sections.iter().zip(&offsets).map(|(section, offset)| {
        let Some(offset) = *offset else { return Ok(None) };
        let base = match part(section) {
            Allocation::Core => bases[0],
            Allocation::Init => bases[1],
        };
        let laid_out = base.map(|base| Addr::new(base.wrapping_add(offset)));
        match address(section).or(laid_out) {
            Some(at) => Ok(Some(at)),
            None if section.size == 0 => Ok(None),
            None => {
                Err(PrepareError::NoAddress { section: escaped(section.name), problem: "no address is given for it" })
            }
        }
    });
    placed.collect()
}

/// Returns the offset of each section in the allocation.
fn offsets(file: &File<'_>) -> Result<Vec<Option<u64>>, PrepareError> {
    let mut offsets = vec![None; file.sections.len()];
    for wanted in [Allocation::Core, Allocation::Init] {
        let mut size = 0_u64;
        for of in GROUPS {
            for (section, place) in file.sections.iter().zip(&mut offsets) {
                if !is_placed(section) || part(section) != wanted || group(section) != of {
                    continue;
                }
                let offset = size.checked_next_multiple_of(section.align);
                let end = offset.and_then(|offset| offset.checked_add(section.size));
                let (Some(offset), Some(end)) = (offset, end) else {
                    return Err(ObjectError::TooLarge { bytes: section.size, limit: u64::MAX }.into());
                };
                (*place, size) = (Some(offset), end);
            }
            size = size.checked_next_multiple_of(PAGE).ok_or(ObjectError::TooLarge { bytes: size, limit: u64::MAX })?;
        }
    }
    Ok(offsets)
}

/// Returns a section as a table, if the section exists.
pub(super) fn table(file: &File<'_>, places: &[Option<Addr>], name: &str) -> Option<RecordTable> {
    let found = (0..).zip(file.sections.iter().zip(places));
    let mut found = found.filter(|(_, (section, _))| section.kept && section.name == name.as_bytes());
    let (index, (section, at)) = found.next()?;
    let size = if section.data.is_empty() { 0 } else { wide(section.data.len()) };
    Some(RecordTable::of_section(index, (*at)?, size))
}
