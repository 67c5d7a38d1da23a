//! The facts on which the bytes of one module depend: the addresses of its parts, and the keys that it refers to.

use std::collections::{BTreeMap, BTreeSet};

use super::dump::KernelMemory;
use super::ko::{Ko, PERCPU};
use super::layout::{self, Half};
use super::symbols::GuestSymbols;
use crate::Result;

/// How facts identify keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyNaming {
    /// By address.
    Address,
    /// By the name of the kernel's symbol, if no other symbol has this name.
    Symbol,
}

impl KeyNaming {
    pub(crate) const ALL: [KeyNaming; 2] = [KeyNaming::Address, KeyNaming::Symbol];

    /// Returns the name of the file with such facts, in the folder of a module.
    pub(crate) fn file(self) -> &'static str {
        match self {
            KeyNaming::Address => "facts",
            KeyNaming::Symbol => "facts-by-name",
        }
    }
}

/// A loaded module.
pub(crate) struct Loaded<'d> {
    pub(crate) name: &'d str,
    /// The start address of its memory.
    pub(crate) start: u64,
    /// The addresses in sysfs, by section.
    pub(crate) listed: BTreeMap<&'d str, u64>,
}

impl Loaded<'_> {
    /// Returns the start address of a half of its memory. The half that is freed after init has no address except those
    /// of its sections.
    pub(crate) fn start_of(&self, half: Half, offsets: &[(usize, u64)], ko: &Ko<'_>) -> Option<u64> {
        match half {
            Half::Core => Some(self.start),
            Half::Init => offsets
                .iter()
                .find_map(|(index, offset)| Some(self.listed.get(ko.sections[*index].name.as_str())? - offset)),
        }
    }

    /// Returns the address of each kept section, by index: from sysfs, or computed for empty sections.
    pub(crate) fn addresses(&self, ko: &Ko<'_>) -> BTreeMap<usize, u64> {
        let mut addresses = BTreeMap::new();
        for half in [Half::Core, Half::Init] {
            let offsets = layout::offsets(ko, half);
            let start = self.start_of(half, &offsets, ko);
            for (index, offset) in offsets {
                let address = self.listed.get(ko.sections[index].name.as_str()).copied();
                if let Some(address) = address.or(start.map(|start| start + offset)) {
                    addresses.insert(index, address);
                }
            }
        }
        addresses
    }

    /// Returns the facts about this module only, in the format of `modhost image --facts`. A static call is identified
    /// by its key, even if the module's file names the trampoline, as it does for every key that is not exported: Linux
    /// has replaced it by the key.
    pub(crate) fn facts_file(
        &self,
        ko: &Ko<'_>,
        memory: &KernelMemory,
        symbols: &GuestSymbols<'_>,
        named: KeyNaming,
    ) -> Result<String> {
        let word = |key: u64| match symbols.unique_name(key).filter(|_| named == KeyNaming::Symbol) {
            Some(name) => name.to_owned(),
            None => format!("{key:#x}"),
        };
        let mut text = String::new();
        if let Some(base) = self.percpu(ko, symbols)? {
            text.push_str(&format!("percpu {base:#x}\n"));
        }
        for key in self.static_call_keys(ko, memory, symbols) {
            let Some(target) = memory.u64_at(key) else { continue };
            text.push_str(&format!("static_call {} {}\n", word(key), target_word(target)));
        }
        for key in self.records(ko, "__jump_table", 16).filter_map(|record| jump_key(memory, record)) {
            if let Some(enabled) = memory.i32_at(key) {
                text.push_str(&format!("static_key {} {}\n", word(key), u8::from(enabled > 0)));
            }
        }
        Ok(unique_lines(&text))
    }

    /// Returns the address of its per-CPU data, computed from the kernel's symbols. All of them must agree.
    pub(crate) fn percpu(&self, ko: &Ko<'_>, symbols: &GuestSymbols<'_>) -> Result<Option<u64>> {
        let mine: BTreeMap<_, _> = symbols.of_module(self.name).iter().copied().collect();
        let mut bases = BTreeSet::new();
        for symbol in ko.symbols() {
            let symbol = symbol?;
            let in_percpu =
                ko.sections.get(usize::from(symbol.section.0)).is_some_and(|section| section.name == PERCPU);
            if in_percpu && !symbol.name.is_empty() {
                bases.extend(mine.get(symbol.name.as_str()).map(|address| address.wrapping_sub(symbol.value)));
            }
        }
        if bases.len() > 1 {
            return Err(format!("{}: its per-CPU symbols disagree: {bases:x?}", self.name).into());
        }
        Ok(bases.first().copied())
    }

    /// Returns the keys that its sites name, and those that it defines.
    fn static_call_keys(&self, ko: &Ko<'_>, memory: &KernelMemory, symbols: &GuestSymbols<'_>) -> BTreeSet<u64> {
        let sites = self.records(ko, ".static_call_sites", 8);
        let mut keys: BTreeSet<u64> =
            sites.filter_map(|record| call_key(record + 4, memory.i32_at(record + 4)?)).collect();
        let mine = symbols.of_module(self.name).iter().filter(|(name, _)| name.starts_with("__SCK__"));
        keys.extend(mine.map(|(_, address)| *address));
        keys
    }

    /// Returns the addresses of the records of a table.
    fn records(&self, ko: &Ko<'_>, table: &str, size: u64) -> impl Iterator<Item = u64> + use<> {
        let start = self.listed.get(table).copied();
        let length = ko.sections.iter().find(|section| section.name == table).map_or(0, |section| section.size);
        start.into_iter().flat_map(move |start| (0..length / size).map(move |record| start + record * size))
    }
}

/// Returns the key of a record of `__jump_table`.
fn jump_key(memory: &KernelMemory, record: u64) -> Option<u64> {
    let bytes = memory.bytes(record + 8, 8)?.first_chunk()?;
    distant_key(record + 8, i64::from_le_bytes(*bytes))
}

/// Returns the key that a field of `__jump_table` refers to. The lowest two bits of the distance are flags.
fn distant_key(field: u64, distance: i64) -> Option<u64> {
    field.checked_add_signed(distance & !3)
}

/// Returns the key that a field of `.static_call_sites` refers to. The lowest two bits of the sum are flags, not those
/// of the distance, because the table need not be aligned.
fn call_key(field: u64, distance: i32) -> Option<u64> {
    Some(field.checked_add_signed(distance.into())? & !3)
}

/// Formats the target of a static call or of a paravirt operation. 0 means none.
pub(crate) fn target_word(target: u64) -> String {
    if target == 0 { "0".into() } else { format!("{target:#x}") }
}

fn unique_lines(text: &str) -> String {
    let mut seen = BTreeSet::new();
    text.lines().filter(|line| seen.insert(*line)).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::{call_key, distant_key, target_word, unique_lines};

    #[test]
    fn the_lowest_bits_of_a_key_are_flags() {
        assert_eq!(distant_key(0x1000, 0x13), Some(0x1010));
        assert_eq!(distant_key(0x1000, -0xf), Some(0xff0));
        assert_eq!(distant_key(0, -4), None);
    }

    #[test]
    fn a_table_of_static_calls_need_not_be_aligned() {
        // A field at 0x1003 that refers to the key at 0x2000 with flag 1, and another with flags, from 0x1000.
        assert_eq!(call_key(0x1003, 0xffe), Some(0x2000));
        assert_eq!(call_key(0x1000, 0x1003), Some(0x2000));
        assert_eq!(call_key(0x2002, -0x1000), Some(0x1000));
        assert_eq!(call_key(0, -4), None);
    }

    #[test]
    fn facts_are_said_once() {
        assert_eq!(unique_lines("b\na\nb\n"), "b\na\n");
        assert_eq!((target_word(0), target_word(16)), ("0".into(), "0x10".into()));
    }
}
