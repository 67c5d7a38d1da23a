//! Symbols that several modules may define, and the choice of a definition.
//!
//! The rule is that of the dynamic linker, because C++ relies on that rule: an inline function, a template's static
//! variable or a type's `typeinfo` is compiled into each object that uses the function, variable or type, but a process
//! must have only one. So:
//!
//! - A symbol with hidden or internal visibility is visible in the defining module only, and is never replaced.
//! - A *vague* definition is a weak one, one of a COMDAT group, or an STB_GNU_UNIQUE one. Of two modules that export
//!   all their globals the first that is loaded defines a vague symbol. The second refers to that definition and holds
//!   the first module.
//! - An STB_GNU_UNIQUE definition is one for the whole process: modules that export nothing share such definitions too,
//!   and a definition in the program's own libraries wins.
//! - Two definitions that are not vague are a mistake, and the second load is refused. A dynamic linker uses the first
//!   one in silence.
//! - A protected symbol is visible to other modules, but references of the defining module always mean the module's own
//!   definition.

use modload_abi::section;
use object::elf;

use crate::elf::file::{File, FileSymbol, SymbolPlace};
use crate::prepare::policy::Exports;

/// Whether other modules may define the same symbol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum DefinitionStrength {
    /// A second definition is an error.
    Strong,
    /// The first module's definition is used.
    Vague,
    /// The first definition in the process is used.
    Unique,
}

/// Which of a module's definitions are shared with other modules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SharedDefinitions {
    /// STB_GNU_UNIQUE definitions only.
    Uniques,
    /// All global definitions, which the module exports.
    Globals,
}

impl SharedDefinitions {
    /// Returns the shared definitions of a module. A module with a table of exports shares STB_GNU_UNIQUE definitions
    /// only.
    pub(crate) fn of(file: &File<'_>, exports: Exports) -> SharedDefinitions {
        let tables = [section::KSYMTAB, section::KSYMTAB_GPL].map(str::as_bytes);
        let declares = || file.sections.iter().any(|section| section.kept && tables.contains(&section.name));
        match exports {
            Exports::GlobalsOfPlainObjects if !declares() => SharedDefinitions::Globals,
            Exports::GlobalsOfPlainObjects | Exports::Declared => SharedDefinitions::Uniques,
        }
    }
}

/// Returns the strength of a definition that is visible to other modules, or `None` for any other symbol.
pub(crate) fn strength(file: &File<'_>, symbol: &FileSymbol<'_>) -> Option<DefinitionStrength> {
    if symbol.bind == elf::STB_LOCAL || matches!(symbol.visibility, elf::STV_HIDDEN | elf::STV_INTERNAL) {
        return None;
    }
    let section = match symbol.place {
        SymbolPlace::Undefined | SymbolPlace::Livepatch => return None,
        SymbolPlace::Absolute | SymbolPlace::Common => None,
        SymbolPlace::Section(section) => Some(file.section(section).filter(|section| section.kept)?),
    };
    Some(match symbol.bind {
        elf::STB_GNU_UNIQUE => DefinitionStrength::Unique,
        elf::STB_WEAK => DefinitionStrength::Vague,
        _ if section.is_some_and(|section| section.comdat) => DefinitionStrength::Vague,
        _ => DefinitionStrength::Strong,
    })
}

/// Whether another module's or a library's definition may replace this one. That definition may be out of reach.
pub(crate) fn may_be_elsewhere(file: &File<'_>, at: u32, shared: SharedDefinitions) -> bool {
    let Some(symbol) = file.symbol(at).filter(|symbol| symbol.visibility == elf::STV_DEFAULT) else { return false };
    match strength(file, &symbol) {
        Some(DefinitionStrength::Unique) => true,
        Some(DefinitionStrength::Vague) => shared == SharedDefinitions::Globals,
        Some(DefinitionStrength::Strong) | None => false,
    }
}
