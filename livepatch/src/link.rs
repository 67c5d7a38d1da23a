//! The linker behind `modhost klp-link`. The linker's input is an object from a compiler. The SDK's `KLP_SYMBOL` marks
//! the references in it to symbols that other objects do not export. The output is a live patch as in
//! Documentation/livepatch/module-elf-format.rst of Linux 6.1. The linker is a pure function: bytes in, bytes out. The
//! linker resolves nothing. If a relocation could not be applied later, the error names the reason.
//!
//! - Each marked symbol becomes `.klp.sym.OBJECT.NAME,POSITION` of section SHN_LIVEPATCH: global, without type, value
//!   and size.
//! - Each relocation of a loaded section against a marked symbol moves, in order, from `.rela.SECTION` to
//!   `.klp.rela.OBJECT.SECTION`. The new section is allocated, so that Linux's loader keeps the section, and flagged
//!   SHF_RELA_LIVEPATCH, so that the loader leaves the section to live patching.
//! - Everything else is unchanged: the contents of the other sections, all indices of sections and symbols, and
//!   therefore groups, links and symbol tables. Strings are added, but none is removed.
//! - Relocations of sections that are not loaded (debug information) are unchanged, too. Linux never applies them. A
//!   tool that applies them finds 0 for a marked symbol, as for every undefined symbol.
//!
//! `object::build::elf::Builder` does not hold the file meanwhile, for four reasons. The builder refuses section groups
//! and clang's `.llvm_addrsig`. The builder does not write files whose sections and symbols share a string table
//! (clang's). The builder treats relocations of an allocated section as a dynamic linker's. The builder numbers symbols
//! anew. The tables here are few and their indices never change, so they are edited in place.

mod error;
mod mark;
mod split;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use modload_abi::known::SHT_CREL;
use modload_abi::modinfo;
use modload_abi::section::{KLP_RELA_PREFIX, MODINFO};
use modload_loader::File;

pub use error::PatchLinkError;

use error::shown;
use mark::Mark;
use split::Moved;
use tables::Tables;

/// A patch whose references wait for their objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Linked {
    /// The file: an ELF64 x86-64 relocatable object.
    pub bytes: Vec<u8>,
    /// The waiting relocations and their symbols, by object, in the order of the symbol table.
    pub objects: Vec<LinkedObject>,
}

/// The relocations that wait for one object, and their symbols.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedObject {
    /// A module's name, or `vmlinux`.
    pub name: String,
    /// The object's symbols that the patch refers to, in the order of the symbol table.
    pub symbols: Vec<LinkedSymbol>,
    /// The sections that refer to the object, in the order of the file's sections.
    pub sections: Vec<LinkedSection>,
}

/// A symbol of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedSymbol {
    /// The symbol's name in the object's symbol table, escaped for a terminal.
    pub name: String,
    /// The position among several symbols of that name, from 1. 0 means that there is exactly one.
    pub position: u64,
}

/// A section of the patch that refers to an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedSection {
    /// The section's name, escaped for a terminal.
    pub name: String,
    /// The number of relocations that wait.
    pub relocations: usize,
}

/// Makes a live patch from an object in which symbols are marked.
///
/// # Errors
/// [`PatchLinkError`]: the input is not a relocatable object for x86-64, is not a live patch, is linked already or has
/// no marks; or a mark is not valid.
pub fn link(input: &[u8]) -> Result<Linked, PatchLinkError> {
    // This check comes first, because the loader need not accept the contents of such files.
    if let Some(section) = tables::section_named(input, KLP_RELA_PREFIX.as_bytes()) {
        return Err(PatchLinkError::LinkedAlready { section });
    }
    let file = File::validate(input).map_err(Box::new)?;
    let mut tables = Tables::read(input, &file)?;
    if let Some(section) = tables.sections.iter().position(|section| section.kind().0 == SHT_CREL) {
        // References in such sections would wait for no object.
        let problem = "compact relocations (SHT_CREL) cannot be linked: compile without --crel";
        return Err(PatchLinkError::Malformed { section, problem });
    }
    let marks = mark::find(&tables)?;
    if marks.is_empty() {
        return Err(PatchLinkError::NothingMarked);
    }
    if !is_live_patch(&tables) {
        return Err(PatchLinkError::NoLivePatch);
    }
    let moved = split::split(&mut tables, &marks)?;
    marks.iter().try_for_each(|mark| mark.write(&mut tables))?;
    Ok(Linked { bytes: tables.write(), objects: summary(&marks, moved) })
}

/// Returns whether the object's source says `MODULE_INFO(livepatch, "Y")`. Linux's loader checks only for the key.
fn is_live_patch(tables: &Tables<'_>) -> bool {
    let mut named = tables.sections.iter().filter(|section| tables.name_of(section) == MODINFO.as_bytes());
    named.any(|section| modinfo::get(&section.data, "livepatch").is_some())
}

/// Returns the waiting relocations and their symbols, by object.
fn summary(marks: &[Mark<'_>], moved: Vec<Moved<'_>>) -> Vec<LinkedObject> {
    let mut objects: Vec<LinkedObject> = Vec::new();
    let mut places = HashMap::new();
    for mark in marks {
        let next = objects.len();
        let place = *places.entry(mark.object).or_insert(next);
        if place == next {
            objects.push(LinkedObject { name: shown(mark.object), symbols: Vec::new(), sections: Vec::new() });
        }
        objects[place].symbols.push(LinkedSymbol { name: shown(mark.name), position: mark.position });
    }
    for Moved { object, section: name, relocations } in moved {
        // Relocations move only because of a mark, so the mark's object is in `places`.
        objects[places[object]].sections.push(LinkedSection { name, relocations });
    }
    objects
}
