//! Moves relocations against marked symbols out of their sections, into one section for each object.

use std::collections::HashMap;

use modload_abi::Rela;
use modload_abi::livepatch::VMLINUX;
use modload_abi::record::FixedRecord as _;
use modload_abi::section::{INIT_SECTION_PREFIX, KLP_RELA_PREFIX};
use modload_edit::index;
use modload_relocs::row;
use object::LittleEndian as LE;
use object::elf;

use super::error::{PatchLinkError, shown};
use super::mark::Mark;
use super::tables::Tables;

/// The relocations that have moved from one section to the section of an object.
#[derive(Debug)]
pub(super) struct Moved<'a> {
    pub(super) object: &'a [u8],
    /// The section that is relocated.
    pub(super) section: String,
    pub(super) relocations: usize,
}

/// Moves the relocations against marked symbols. If no relocation stays behind, the section itself becomes the first
/// object's section. So no section is removed, and no index changes.
pub(super) fn split<'a>(tables: &mut Tables<'a>, marks: &[Mark<'a>]) -> Result<Vec<Moved<'a>>, PatchLinkError> {
    let marks: HashMap<usize, &Mark<'a>> = marks.iter().map(|mark| (mark.symbol, mark)).collect();
    let mut all = Vec::new();
    for at in 0..tables.sections.len() {
        let Some(target) = loaded_target(tables, at) else { continue };
        let parts = parts(tables, at, target, &marks)?;
        if parts.waiting.is_empty() {
            continue;
        }
        let mut own = Some(at).filter(|_| parts.staying.is_empty());
        if own.is_none() {
            tables.sections[at].data = parts.staying.into();
        }
        let target = tables.name_of(&tables.sections[target]);
        for (object, relocations) in parts.waiting {
            all.push(Moved { object, section: shown(target), relocations: relocations.len() / Rela::SIZE });
            let place = match own.take() {
                None => tables.add_section_like(at, relocations)?,
                Some(own) => {
                    tables.sections[own].data = relocations.into();
                    own
                }
            };
            tables.make_waiting(place, &[KLP_RELA_PREFIX.as_bytes(), object, b".", target].concat())?;
        }
    }
    Ok(all)
}

/// Returns the section that a section of relocations relocates. Returns `None` if `at` is not such a section, or if its
/// target is not loaded.
fn loaded_target(tables: &Tables<'_>, at: usize) -> Option<usize> {
    let section = tables.sections.get(at).filter(|section| section.kind() == elf::SHT_RELA)?;
    let target = index(section.header.sh_info.get(LE).into());
    tables.sections.get(target).filter(|target| target.is_loaded()).map(|_| target)
}

/// The relocations of a section, in their order.
#[derive(Default)]
struct Parts<'a> {
    staying: Vec<u8>,
    /// The moving relocations by object, in the order of each object's first relocation.
    waiting: Vec<(&'a [u8], Vec<u8>)>,
    /// The index of each object in `waiting`.
    places: HashMap<&'a [u8], usize>,
}

fn parts<'a>(
    tables: &Tables<'a>,
    at: usize,
    target: usize,
    marks: &HashMap<usize, &Mark<'a>>,
) -> Result<Parts<'a>, PatchLinkError> {
    let mut parts = Parts::default();
    let records = tables.sections[at].data.chunks_exact(Rela::SIZE);
    if !records.remainder().is_empty() {
        return Err(PatchLinkError::Malformed { section: at, problem: "no whole number of relocations" });
    }
    for record in records {
        let rela = Rela::read(record);
        let Some(mark) = marks.get(&index(rela.symbol.into())) else {
            parts.staying.extend_from_slice(record);
            continue;
        };
        check(&rela, mark, tables.name_of(&tables.sections[target]))?;
        let next = parts.waiting.len();
        let place = *parts.places.entry(mark.object).or_insert(next);
        if place == next {
            parts.waiting.push((mark.object, Vec::new()));
        }
        parts.waiting[place].1.extend_from_slice(record);
    }
    Ok(parts)
}

/// Checks that a reference can wait for its object.
fn check(rela: &Rela, mark: &Mark<'_>, target: &[u8]) -> Result<(), PatchLinkError> {
    // Linux drops these sections when init has returned, but would still write there.
    if mark.object != VMLINUX && target.starts_with(INIT_SECTION_PREFIX.as_bytes()) {
        return Err(PatchLinkError::Init {
            section: shown(target),
            symbol: shown(mark.name),
            object: shown(mark.object),
        });
    }
    match row(rela.kind) {
        Some(row) if row.value.is_thread_local() => {
            Err(PatchLinkError::ThreadLocal { symbol: shown(mark.name), object: shown(mark.object) })
        }
        // The loader reports any other problem with the relocation, as with every other relocation.
        _ => Ok(()),
    }
}
