//! The sections of a module as if Linux only relocated them. Implemented independently of the product's own
//! relocations, for the few types that Linux supports.

use std::collections::{BTreeMap, HashMap};

use object::elf;

use super::ko::{Ko, KoRelocation, KoSymbol, PERCPU};
use super::symbols::GuestSymbols;
use crate::Result;

/// A relocated section.
pub(crate) struct ExpectedSection {
    pub(crate) bytes: Vec<u8>,
    /// The relocated fields: offset and width in bytes.
    pub(crate) fields: Vec<(usize, usize)>,
    /// The fields that are as in the file, because the names of their symbols are ambiguous.
    pub(crate) unresolved: Vec<(usize, usize)>,
}

/// The addresses of a module's symbols.
pub(crate) struct ModulePlaces<'p> {
    pub(crate) addresses: BTreeMap<usize, u64>,
    pub(crate) percpu: Option<u64>,
    pub(crate) ko: &'p Ko<'p>,
    pub(crate) symbols: &'p GuestSymbols<'p>,
    pub(crate) exports: &'p HashMap<&'p str, u64>,
}

impl ModulePlaces<'_> {
    /// Returns a section of the file, relocated.
    pub(crate) fn relocated(&self, section: usize) -> Result<ExpectedSection> {
        let bytes = self.ko.bytes_of(section)?.to_vec();
        let mut relocated = ExpectedSection { bytes, fields: Vec::new(), unresolved: Vec::new() };
        for relocation in self.ko.relocations(section)? {
            let at = usize::try_from(relocation.offset)?;
            let width = match relocation.raw {
                elf::R_X86_64_NONE => continue,
                elf::R_X86_64_64 | elf::R_X86_64_PC64 => 8,
                elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => 4,
                other => return Err(format!("Linux refuses relocations of type {}", other.0).into()),
            };
            let Some(value) = self.value(&relocation, self.addresses[&section])? else {
                relocated.unresolved.push((at, width));
                continue;
            };
            let field = relocated.bytes.get_mut(at..at + width).ok_or("a relocation beyond its section")?;
            field.copy_from_slice(&value.to_le_bytes()[..width]);
            relocated.fields.push((at, width));
        }
        Ok(relocated)
    }

    /// Returns the value of a relocated field, or `None` if its symbol is not known.
    fn value(&self, relocation: &KoRelocation, section: u64) -> Result<Option<u64>> {
        let Some(symbol) = self.address(&self.ko.symbol(relocation.symbol)?) else { return Ok(None) };
        let (value, place) = (symbol.wrapping_add_signed(relocation.addend), section.wrapping_add(relocation.offset));
        let is_relative = [elf::R_X86_64_PC32, elf::R_X86_64_PLT32, elf::R_X86_64_PC64].contains(&relocation.raw);
        Ok(Some(if is_relative { value.wrapping_sub(place) } else { value }))
    }

    fn address(&self, symbol: &KoSymbol) -> Option<u64> {
        match symbol.section {
            elf::SHN_UNDEF if symbol.name.is_empty() => Some(0),
            elf::SHN_UNDEF => {
                self.symbols.unique(&symbol.name).or_else(|| self.exports.get(symbol.name.as_str()).copied())
            }
            elf::SHN_ABS => Some(symbol.value),
            section => {
                let section = usize::from(section.0);
                let is_percpu = self.ko.sections.get(section).is_some_and(|section| section.name == PERCPU);
                let start = if is_percpu { self.percpu } else { self.addresses.get(&section).copied() };
                start.map(|start| start.wrapping_add(symbol.value))
            }
        }
    }
}
