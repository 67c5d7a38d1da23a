//! What `modhost klp-link` does: an object of a compiler, in which references to what other objects do not export are marked by the
//! SDK's `KLP_SYMBOL`, becomes a live patch as Documentation/livepatch/module-elf-format.rst of Linux 6.1 has it. A pure function:
//! bytes in, bytes out. It resolves nothing, and refuses by name what could not be applied later.
//!
//! - Each marked symbol becomes `.klp.sym.OBJECT.NAME,POSITION` of section SHN_LIVEPATCH: global, without type, value and size.
//! - Each relocation of a loaded section against one moves, in order, from `.rela.SECTION` to `.klp.rela.OBJECT.SECTION`, which is
//!   allocated, so that Linux's loader keeps it, and flagged SHF_RELA_LIVEPATCH, so that it leaves it to live patching.
//! - Everything else stays as it is: the contents of the other sections, all indices of sections and symbols, and with them
//!   groups, links and symbol tables. Strings are added, none is taken away.
//! - Relocations of what is not loaded (debug information) stay, too. Linux never applies them, and who does finds 0 for a marked
//!   symbol, as for every symbol that is elsewhere.
//!
//! `object::build::elf::Builder` is not what holds the file meanwhile: it refuses section groups and clang's `.llvm_addrsig`, does
//! not write files whose sections and symbols share a string table (clang's), takes relocations of an allocated section for a
//! dynamic linker's, and numbers symbols anew. Tables are few here and their indices never change, so they are edited in place.

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

pub use error::Error;

use error::shown;
use mark::Mark;
use split::Moved;
use tables::Tables;

/// A patch whose references wait for their objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Linked {
    /// The file: an ELF64 x86-64 relocatable object.
    pub bytes: Vec<u8>,
    /// What waits, by object, in the order of the symbol table.
    pub objects: Vec<LinkedObject>,
}

/// What waits for one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedObject {
    /// A module's name, or `vmlinux`.
    pub name: String,
    /// Its symbols that are referred to, in the order of the symbol table.
    pub symbols: Vec<LinkedSymbol>,
    /// Where they are referred to, in the order of the file's sections.
    pub sections: Vec<LinkedSection>,
}

/// A symbol of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedSymbol {
    /// Its name in the object's symbol table, escaped for a terminal.
    pub name: String,
    /// Which of several symbols of that name, from 1; 0: there is one.
    pub position: u64,
}

/// A section of the patch that refers to an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedSection {
    /// Its name, escaped for a terminal.
    pub name: String,
    /// How many relocations wait.
    pub relocations: usize,
}

/// Makes a live patch of an object in which something is marked.
///
/// # Errors
/// [`Error`]: it is no relocatable object for x86-64, no live patch, linked already, nothing is marked, or a mark asks for what
/// cannot be.
pub fn link(input: &[u8]) -> Result<Linked, Error> {
    // First, for the loader need not take what such files hold.
    if let Some(section) = tables::section_named(input, KLP_RELA_PREFIX.as_bytes()) {
        return Err(Error::LinkedAlready { section });
    }
    let file = File::validate(input).map_err(Box::new)?;
    let mut tables = Tables::read(input, &file)?;
    if let Some(section) = tables.sections.iter().position(|section| section.kind().0 == SHT_CREL) {
        // What they refer to would wait for no object.
        let problem = "compact relocations (SHT_CREL) cannot be linked: compile without --crel";
        return Err(Error::Malformed { section, problem });
    }
    let marks = mark::find(&tables)?;
    if marks.is_empty() {
        return Err(Error::NothingMarked);
    }
    if !is_live_patch(&tables) {
        return Err(Error::NoLivePatch);
    }
    let moved = split::split(&mut tables, &marks)?;
    marks.iter().try_for_each(|mark| mark.write(&mut tables))?;
    Ok(Linked { bytes: tables.write(), objects: summary(&marks, moved) })
}

/// Whether its source says `MODULE_INFO(livepatch, "Y")`. Linux's loader asks for the key alone.
fn is_live_patch(tables: &Tables<'_>) -> bool {
    let mut named = tables.sections.iter().filter(|section| tables.name_of(section) == MODINFO.as_bytes());
    named.any(|section| modinfo::get(&section.data, "livepatch").is_some())
}

/// What waits, by object.
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
        // Nothing moves but for a mark.
        objects[places[object]].sections.push(LinkedSection { name, relocations });
    }
    objects
}
