//! Relocations against marked symbols leave their sections, for one of their object's each.

use std::collections::HashMap;

use modload_abi::Rela;
use modload_abi::livepatch::VMLINUX;
use modload_abi::record::FixedRecord as _;
use modload_abi::section::{INIT_SECTION_PREFIX, KLP_RELA_PREFIX};
use modload_edit::index;
use modload_relocs::{Reason, RelocFormula, row};
use object::LittleEndian as LE;
use object::elf;

use super::error::{Error, shown};
use super::mark::Mark;
use super::tables::Tables;

/// What has moved from one section to one for an object.
#[derive(Debug)]
pub(super) struct Moved<'a> {
    pub(super) object: &'a [u8],
    /// The section that is relocated.
    pub(super) section: String,
    pub(super) relocations: usize,
}

/// Moves what refers to marked symbols. Where nothing stays behind, the section itself becomes the first object's: so no section
/// goes, and no index changes.
pub(super) fn split<'a>(tables: &mut Tables<'a>, marks: &[Mark<'a>]) -> Result<Vec<Moved<'a>>, Error> {
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

/// The section that a section of relocations relocates, if it is one and that is loaded.
fn loaded_target(tables: &Tables<'_>, at: usize) -> Option<usize> {
    let section = tables.sections.get(at).filter(|section| section.kind() == elf::SHT_RELA)?;
    let target = index(section.header.sh_info.get(LE).into());
    tables.sections.get(target).filter(|target| target.is_loaded()).map(|_| target)
}

/// The relocations of a section, in their order.
#[derive(Default)]
struct Parts<'a> {
    staying: Vec<u8>,
    /// By object, in the order in which they are met.
    waiting: Vec<(&'a [u8], Vec<u8>)>,
    /// Where an object is among those.
    places: HashMap<&'a [u8], usize>,
}

fn parts<'a>(
    tables: &Tables<'a>,
    at: usize,
    target: usize,
    marks: &HashMap<usize, &Mark<'a>>,
) -> Result<Parts<'a>, Error> {
    let mut parts = Parts::default();
    let records = tables.sections[at].data.chunks_exact(Rela::SIZE);
    if !records.remainder().is_empty() {
        return Err(Error::Malformed { section: at, problem: "no whole number of relocations" });
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

/// Whether a reference can wait.
fn check(rela: &Rela, mark: &Mark<'_>, target: &[u8]) -> Result<(), Error> {
    // Linux drops these sections when init has returned, and would write there all the same.
    if mark.object != VMLINUX && target.starts_with(INIT_SECTION_PREFIX.as_bytes()) {
        return Err(Error::Init { section: shown(target), symbol: shown(mark.name), object: shown(mark.object) });
    }
    match row(rela.kind) {
        Some(row) if row.value == RelocFormula::Refused(Reason::ThreadLocal) => {
            Err(Error::ThreadLocal { symbol: shown(mark.name), object: shown(mark.object) })
        }
        // Whoever loads it says what else is wrong with one, as with every other relocation.
        _ => Ok(()),
    }
}
