//! Whether a dump is what it claims to be. Nothing here knows how Linux rewrites code.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use object::elf;

use super::dump::Memory;
use super::facts::Loaded;
use super::judged::Texts;
use super::ko::{Ko, PERCPU, Relocation, Section, Symbol};
use super::layout::{self, Half};
use super::machine::Machine;
use super::symbols::Symbols;
use crate::Result;

/// Sections that Linux relocates and does nothing else with. (It sorts others, and rewrites code.)
const ONLY_RELOCATED: [&str; 13] = [
    ".rodata",
    "__param",
    "__ksymtab",
    "__ksymtab_gpl",
    ".altinstructions",
    ".parainstructions",
    ".smp_locks",
    ".retpoline_sites",
    ".return_sites",
    "__tracepoints_ptrs",
    ".static_call_tramp_key",
    "__modver",
    ".pci_fixup_header",
];

/// Flags that /proc/cpuinfo shows and that are no bits of the words as they were when modules were loaded.
const SAID_OTHERWISE: [&str; 0] = [];

/// How often each check was made, and what did not hold.
#[derive(Default)]
pub(crate) struct Checks {
    made: BTreeMap<&'static str, u64>,
    /// Relocations against symbols whose names say too little.
    unresolved: u64,
    pub(crate) failed: Vec<String>,
}

impl Checks {
    fn check(&mut self, what: &'static str, holds: Holds, detail: impl FnOnce() -> String) {
        *self.made.entry(what).or_default() += 1;
        if let Holds::No = holds {
            self.failed.push(format!("{what}: {}", detail()));
        }
    }

    /// A line a check.
    pub(crate) fn report(&self) -> String {
        let mut lines: String = self.made.iter().map(|(what, count)| format!("  {count:>8} {what}\n")).collect();
        lines.push_str(&format!(
            "  {:>8} relocations not checked: the names of their symbols say too little\n",
            self.unresolved
        ));
        lines
    }

    /// The words of capabilities against /proc/cpuinfo, which the kernel prints by its own tables.
    pub(crate) fn machine(
        &mut self,
        machine: &Machine,
        texts: &Texts,
        memory: &Memory,
        symbols: &Symbols<'_>,
    ) -> Result<()> {
        let (features, bugs) = machine.names(memory, symbols)?;
        for (key, names) in [("flags", features), ("bugs", bugs)] {
            let line = texts.cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|word| word.trim() == key));
            let said: BTreeSet<&str> =
                line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().split_whitespace().collect();
            let ours: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            let differ: Vec<_> =
                ours.symmetric_difference(&said).filter(|name| !SAID_OTHERWISE.contains(name)).collect();
            let holds = Holds::of(differ.is_empty() && !said.is_empty());
            self.check("lines of /proc/cpuinfo are the capability words", holds, || format!("{key}: {differ:?}"));
        }
        Ok(())
    }

    /// One module.
    pub(crate) fn module(
        &mut self,
        loaded: &Loaded<'_>,
        ko: &Ko<'_>,
        memory: &Memory,
        symbols: &Symbols<'_>,
        exports: &HashMap<&str, u64>,
    ) -> Result<()> {
        self.layout(loaded, ko);
        let addresses = loaded.addresses(ko);
        self.symbols(loaded, ko, &addresses, symbols)?;
        let places = Places { addresses, percpu: loaded.percpu(ko, symbols)?, ko, symbols, exports };
        for (index, section) in ko.numbered().filter(|(_, section)| section.is_judged() && !section.is_executable()) {
            self.contents(loaded.name, index, section, &places, memory)?;
        }
        Ok(())
    }

    /// What sysfs lists lies where the rules of the layout put it.
    fn layout(&mut self, loaded: &Loaded<'_>, ko: &Ko<'_>) {
        let offsets = layout::offsets(ko, Half::Core);
        for (section, offset) in offsets.iter().map(|(index, offset)| (&ko.sections[*index], offset)) {
            let listed = loaded.listed.get(section.name.as_str());
            let holds = match listed {
                Some(address) => Holds::of(*address == loaded.start + offset),
                None => Holds::of(section.size == 0),
            };
            self.check("sections are where the layout puts them", holds, || {
                format!("{} of {}: {listed:x?}, not {offset:#x} from {:#x}", section.name, loaded.name, loaded.start)
            });
        }
    }

    /// Each name of /proc/kallsyms is a symbol of the file at its section's address.
    fn symbols(
        &mut self,
        loaded: &Loaded<'_>,
        ko: &Ko<'_>,
        addresses: &BTreeMap<usize, u64>,
        symbols: &Symbols<'_>,
    ) -> Result<()> {
        let mut expected: HashMap<String, Vec<u64>> = HashMap::new();
        for symbol in ko.symbols() {
            let symbol = symbol?;
            if let Some(address) = addresses.get(&usize::from(symbol.section.0)) {
                expected.entry(symbol.name).or_default().push(address + symbol.value);
            }
        }
        for (name, address) in symbols.of_module(loaded.name) {
            // Per-CPU and absolute symbols have no section's address.
            let Some(places) = expected.get(*name) else { continue };
            let holds = Holds::of(places.contains(address));
            self.check("symbols are at their sections' addresses", holds, || {
                format!("{name} of {}: {address:#x}, not {places:x?}", loaded.name)
            });
        }
        Ok(())
    }

    /// Data that nothing is done to is as in the file; and what is only relocated has the values that its relocations say.
    fn contents(
        &mut self,
        module: &str,
        index: usize,
        section: &Section,
        places: &Places<'_>,
        memory: &Memory,
    ) -> Result<()> {
        let relocations = places.ko.relocations(index)?;
        let (only_relocated, as_is) =
            (ONLY_RELOCATED.contains(&section.name.as_str()), section.name.starts_with(".rodata.str"));
        if !only_relocated && !as_is && !section.name.starts_with(".note") {
            return Ok(());
        }
        let start = places.addresses[&index];
        let Some(there) = memory.bytes(start, section.size) else { return Ok(()) };
        let mut expected = places.ko.bytes_of(index)?.to_vec();
        for relocation in &relocations {
            let Some((value, width)) = places.value(relocation, start)? else {
                // Taken from memory, so that the rest of the section can be compared.
                let at = usize::try_from(relocation.offset)?;
                expected[at..at + 4].copy_from_slice(&there[at..at + 4]);
                self.unresolved += 1;
                continue;
            };
            let at = usize::try_from(relocation.offset)?;
            expected[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            self.check(
                "relocations have been applied",
                Holds::of(expected[at..at + width] == there[at..at + width]),
                || format!("{module} {}+{at:#x}: {relocation:?}", section.name),
            );
        }
        let what = if relocations.is_empty() {
            "sections without relocations are as in the file"
        } else {
            "sections of data are as in the file but for relocations"
        };
        self.check(what, Holds::of(expected == there), || format!("{module} {}", section.name));
        Ok(())
    }
}

/// The outcome of a check.
#[derive(Clone, Copy)]
enum Holds {
    Yes,
    No,
}

impl Holds {
    fn of(condition: bool) -> Holds {
        if condition { Holds::Yes } else { Holds::No }
    }
}

/// Where a module's symbols are.
struct Places<'p> {
    addresses: BTreeMap<usize, u64>,
    percpu: Option<u64>,
    ko: &'p Ko<'p>,
    symbols: &'p Symbols<'p>,
    exports: &'p HashMap<&'p str, u64>,
}

impl Places<'_> {
    /// The value of a relocated field and its width; `None` if its symbol is not known.
    fn value(&self, relocation: &Relocation, section: u64) -> Result<Option<(u64, usize)>> {
        let Some(symbol) = self.address(&self.ko.symbol(relocation.symbol)?) else { return Ok(None) };
        let (value, place) = (symbol.wrapping_add_signed(relocation.addend), section.wrapping_add(relocation.offset));
        Ok(match relocation.raw {
            elf::R_X86_64_64 => Some((value, 8)),
            elf::R_X86_64_32 | elf::R_X86_64_32S => Some((value, 4)),
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => Some((value.wrapping_sub(place), 4)),
            elf::R_X86_64_PC64 => Some((value.wrapping_sub(place), 8)),
            _ => None,
        })
    }

    fn address(&self, symbol: &Symbol) -> Option<u64> {
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
