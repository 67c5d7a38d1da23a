//! Symbols that several modules may define: which definition is used.
//!
//! The rule is that of the dynamic linker, because C++ relies on it: an inline function, a template's static variable or a
//! type's `typeinfo` is compiled into each object that uses it, and there must be one of it in a process. So:
//!
//! - A symbol with hidden or internal visibility is visible in its own module only, and is never replaced.
//! - A *vague* definition is a weak one, one of a COMDAT group, or an STB_GNU_UNIQUE one. Of two modules that export all
//!   their globals the first that is loaded defines a vague symbol, and the second refers to that and holds its module.
//! - An STB_GNU_UNIQUE definition is one for the whole process: modules that export nothing share it too, and it gives way to
//!   that of the program's own libraries.
//! - Two definitions that are not vague are a mistake, and the second load is refused. A dynamic linker uses the first one in
//!   silence.
//! - A protected symbol is seen by others, but its own module always means its own.

use modload_edit::Addr;
use object::elf;

use crate::elf::file::{File, Place, Sym};
use crate::modules::registry::{Book, Export, Found};
use crate::modules::timeline::Recorder;
use crate::operate::resolve::Scene;
use crate::prepare::policy::{Exports, Wanted};
use crate::vocabulary::error::Error;

use modload_abi::section;

/// Whether other modules may define the same symbol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Strength {
    /// A second definition is an error.
    Strong,
    /// The first module's definition is used.
    Vague,
    /// The first definition in the process is used.
    Unique,
}

/// Which of a module's definitions are shared with other modules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shared {
    /// STB_GNU_UNIQUE definitions only.
    Uniques,
    /// All global definitions, which the module exports.
    Globals,
}

impl Shared {
    /// What a module shares. A module with a table of exports shares STB_GNU_UNIQUE definitions only.
    pub(crate) fn of(file: &File<'_>, exports: Exports) -> Shared {
        let tables = [section::KSYMTAB, section::KSYMTAB_GPL].map(str::as_bytes);
        let declares = || file.sections.iter().any(|section| section.kept && tables.contains(&section.name));
        match exports {
            Exports::GlobalsOfPlainObjects if !declares() => Shared::Globals,
            Exports::GlobalsOfPlainObjects | Exports::Declared => Shared::Uniques,
        }
    }
}

/// Returns the strength of a definition that is visible to other modules, or `None` for any other symbol.
pub(crate) fn strength(file: &File<'_>, symbol: &Sym<'_>) -> Option<Strength> {
    if symbol.bind == elf::STB_LOCAL || matches!(symbol.visibility, elf::STV_HIDDEN | elf::STV_INTERNAL) {
        return None;
    }
    let section = match symbol.place {
        Place::Undefined | Place::Livepatch => return None,
        Place::Absolute | Place::Common => None,
        Place::Section(section) => Some(file.section(section).filter(|section| section.kept)?),
    };
    Some(match symbol.bind {
        elf::STB_GNU_UNIQUE => Strength::Unique,
        elf::STB_WEAK => Strength::Vague,
        _ if section.is_some_and(|section| section.comdat) => Strength::Vague,
        _ => Strength::Strong,
    })
}

/// Whether another module's or a library's definition may replace this one. That definition may be out of reach.
pub(crate) fn may_be_elsewhere(file: &File<'_>, at: u32, shared: Shared) -> bool {
    let Some(symbol) = file.symbol(at).filter(|symbol| symbol.visibility == elf::STV_DEFAULT) else { return false };
    match strength(file, &symbol) {
        Some(Strength::Unique) => true,
        Some(Strength::Vague) => shared == Shared::Globals,
        Some(Strength::Strong) | None => false,
    }
}

/// Returns the definition that replaces this one, if there is one: the host's, another module's, or that of a library of the
/// process. Another module is held from now on.
pub(crate) fn elsewhere(
    symbol: &Sym<'_>,
    strength: Strength,
    shared: Shared,
    scene: Scene<'_>,
) -> Result<Option<Addr>, Error> {
    let name = symbol.name();
    let is_shared = strength == Strength::Unique || shared == Shared::Globals;
    if symbol.visibility != elf::STV_DEFAULT || name.is_empty() || !is_shared {
        return Ok(None);
    }
    if let Some(external) = scene.externals.exported(name).filter(|_| strength != Strength::Strong) {
        let (gpl_only, crc) = (external.gpl_only, external.crc);
        judge(&Wanted { symbol: name, owner: "the host", gpl_only, namespace: &[], crc }, scene)?;
        return Ok(Some(external.addr));
    }
    let tables = [
        (shared == Shared::Globals).then_some(Table::Exports),
        (strength == Strength::Unique).then_some(Table::Uniques),
    ];
    for table in tables.into_iter().flatten() {
        let Some((export, owner)) = scene.registry.export_of(table, name) else { continue };
        if strength == Strength::Strong && export.strength == Strength::Strong {
            continue;
        }
        let Export { gpl_only, crc, namespace, .. } = &export;
        judge(&Wanted { symbol: name, owner: &owner, gpl_only: *gpl_only, namespace, crc: *crc }, scene)?;
        if let Found::Usable { addr } = scene.registry.use_export_of(table, scene.user, name, &export)? {
            return Ok(Some(addr));
        }
    }
    let of_process = || scene.externals.fallback(name).map(|external| external.addr);
    Ok(if strength == Strength::Unique { of_process() } else { None })
}

fn judge(wanted: &Wanted<'_>, scene: Scene<'_>) -> Result<(), Error> {
    scene.judge.symbol(Recorder { registry: scene.registry, module: scene.name }, wanted)
}

/// The registry's tables of definitions that other modules may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Table {
    /// Exports, for any module.
    Exports,
    /// STB_GNU_UNIQUE definitions, for other definitions of the same name only.
    Uniques,
}

impl Book {
    /// The definition of a name in a table.
    pub(crate) fn exported(&self, table: Table, name: &[u8]) -> Option<&Export> {
        match table {
            Table::Exports => self.exports.get(name),
            Table::Uniques => self.uniques.get(name),
        }
    }

    /// The name of the module that has entered a name in a table.
    pub(crate) fn owner(&self, table: Table, name: &[u8]) -> Option<String> {
        let export = self.exported(table, name)?;
        Some(self.by_id(export.module).map_or_else(String::new, |entry| entry.name.to_string()))
    }

    /// Enters a definition in a table.
    pub(crate) fn enter(&mut self, table: Table, name: Box<[u8]>, export: Export) {
        match table {
            Table::Exports => self.exports.insert(name, export),
            Table::Uniques => self.uniques.insert(name, export),
        };
    }
}
