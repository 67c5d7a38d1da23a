//! Checks that a dump is consistent. This module does not know how Linux rewrites code.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::dump::KernelMemory;
use super::facts::Loaded;
use super::judged::Texts;
use super::ko::{Ko, KoSection};
use super::layout::{self, Half};
use super::machine::KernelState;
use super::relocated::ModulePlaces;
use super::symbols::GuestSymbols;
use crate::Result;

/// Sections that Linux only relocates. (It sorts others, and rewrites code.)
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

/// Prefixes of sections that Linux does not change.
const AS_IN_THE_FILE: [&str; 2] = [".rodata.str", ".note"];

/// The numbers of sections of one name, by the change that Linux made.
#[derive(Default)]
struct RewriteCounts {
    all: usize,
    as_in_the_file: usize,
    as_relocated: usize,
    rewritten: usize,
}

/// The number of checks of each kind, and the checks that failed.
#[derive(Default)]
pub(crate) struct Checks {
    made: BTreeMap<&'static str, u64>,
    /// Relocations whose symbols have ambiguous names.
    unresolved: usize,
    /// Static call sites that name the trampoline instead of the key in the file.
    by_trampoline: usize,
    rewriting: BTreeMap<String, RewriteCounts>,
    pub(crate) failed: Vec<String>,
}

impl Checks {
    fn check(&mut self, what: &'static str, holds: Holds, detail: impl FnOnce() -> String) {
        *self.made.entry(what).or_default() += 1;
        if let Holds::No = holds {
            self.failed.push(format!("{what}: {}", detail()));
        }
    }

    /// Returns a line for each kind of check.
    pub(crate) fn report(&self) -> String {
        let mut lines: String = self.made.iter().map(|(what, count)| format!("  {count:>8} {what}\n")).collect();
        lines.push_str(&format!(
            "  {:>8} relocations not checked: the names of their symbols are ambiguous\n",
            self.unresolved
        ));
        lines.push_str(&format!("  {:>8} static call sites name a trampoline in their file\n", self.by_trampoline));
        lines
    }

    /// Fails if the dump has no such sites, because it would prove nothing about them.
    pub(crate) fn trampolines(&mut self) {
        let holds = Holds::of(self.by_trampoline != 0);
        self.check("some static call sites name a trampoline", holds, || "no site does: choose other modules".into());
    }

    /// Returns the numbers of changed sections, by name. Sections that Linux never changes are only in the sum.
    pub(crate) fn rewriting(&self) -> String {
        let mut text =
            String::from("  section                     all   as in the file   only relocated   rewritten\n");
        let sum = |of: fn(&RewriteCounts) -> usize| self.rewriting.values().map(of).sum();
        let (all, rewritten) = (sum(|it| it.all), sum(|it| it.rewritten));
        let sum = RewriteCounts {
            all,
            as_in_the_file: sum(|it| it.as_in_the_file),
            as_relocated: sum(|it| it.as_relocated),
            rewritten,
        };
        let rows = self.rewriting.iter().map(|(name, row)| (name.as_str(), row)).chain([("together", &sum)]);
        for (name, row) in rows.filter(|(_, row)| row.as_in_the_file < row.all) {
            let RewriteCounts { all, as_in_the_file, as_relocated, rewritten } = row;
            text.push_str(&format!("  {name:24} {all:>6} {as_in_the_file:>16} {as_relocated:>16} {rewritten:>11}\n"));
        }
        text
    }

    /// Compares the words of capabilities with /proc/cpuinfo, which the kernel prints from its own tables.
    pub(crate) fn machine(
        &mut self,
        machine: &KernelState,
        texts: &Texts,
        memory: &KernelMemory,
        symbols: &GuestSymbols<'_>,
    ) -> Result<()> {
        let (features, bugs) = machine.names(memory, symbols)?;
        for (key, names) in [("flags", features), ("bugs", bugs)] {
            let line = texts.cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|word| word.trim() == key));
            let said: BTreeSet<&str> =
                line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().split_whitespace().collect();
            let ours: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
            let differ: Vec<_> = ours.symmetric_difference(&said).collect();
            let holds = Holds::of(differ.is_empty() && !said.is_empty());
            self.check("lines of /proc/cpuinfo are the capability words", holds, || format!("{key}: {differ:?}"));
        }
        Ok(())
    }

    /// Checks one module.
    pub(crate) fn module(
        &mut self,
        loaded: &Loaded<'_>,
        ko: &Ko<'_>,
        memory: &KernelMemory,
        symbols: &GuestSymbols<'_>,
        exports: &HashMap<&str, u64>,
    ) -> Result<()> {
        self.layout(loaded, ko);
        self.by_trampoline += sites_by_trampoline(ko)?;
        let addresses = loaded.addresses(ko);
        self.symbols(loaded, ko, &addresses, symbols)?;
        let places = ModulePlaces { addresses, percpu: loaded.percpu(ko, symbols)?, ko, symbols, exports };
        for (index, section) in ko.numbered().filter(|(_, section)| section.is_judged()) {
            self.contents(loaded.name, index, section, &places, memory)?;
        }
        Ok(())
    }

    /// Checks that the sections in sysfs have the addresses that the layout rules give.
    fn layout(&mut self, loaded: &Loaded<'_>, ko: &Ko<'_>) {
        for half in [Half::Core, Half::Init] {
            let offsets = layout::offsets(ko, half);
            let Some(start) = loaded.start_of(half, &offsets, ko) else { continue };
            for (section, offset) in offsets.iter().map(|(index, offset)| (&ko.sections[*index], offset)) {
                let listed = loaded.listed.get(section.name.as_str());
                let holds = match listed {
                    Some(address) => Holds::of(*address == start + offset),
                    None => Holds::of(section.size == 0),
                };
                self.check("sections are where the layout puts them", holds, || {
                    format!("{} of {}: {listed:x?}, not {offset:#x} from {start:#x}", section.name, loaded.name)
                });
            }
        }
    }

    /// Checks that each name of /proc/kallsyms is a symbol of the file, at the address of its section.
    fn symbols(
        &mut self,
        loaded: &Loaded<'_>,
        ko: &Ko<'_>,
        addresses: &BTreeMap<usize, u64>,
        symbols: &GuestSymbols<'_>,
    ) -> Result<()> {
        let mut expected: HashMap<String, Vec<u64>> = HashMap::new();
        for symbol in ko.symbols() {
            let symbol = symbol?;
            if let Some(address) = addresses.get(&usize::from(symbol.section.0)) {
                expected.entry(symbol.name).or_default().push(address + symbol.value);
            }
        }
        for (name, address) in symbols.of_module(loaded.name) {
            // Per-CPU and absolute symbols do not lie in a listed section.
            let Some(places) = expected.get(*name) else { continue };
            let holds = Holds::of(places.contains(address));
            self.check("symbols are at their sections' addresses", holds, || {
                format!("{name} of {}: {address:#x}, not {places:x?}", loaded.name)
            });
        }
        Ok(())
    }

    /// Checks that unchanged data equals the file, and that sections which Linux only relocates have the values of
    /// their relocations. Counts all sections: as in the file, as relocated, or rewritten.
    fn contents(
        &mut self,
        module: &str,
        index: usize,
        section: &KoSection,
        places: &ModulePlaces<'_>,
        memory: &KernelMemory,
    ) -> Result<()> {
        let mut relocated = places.relocated(index)?;
        let Some(there) = memory.bytes(places.addresses[&index], section.size) else { return Ok(()) };
        self.unresolved += relocated.unresolved.len();
        for (at, width) in relocated.unresolved {
            // Taken from memory, so that the rest of the section can be compared.
            relocated.bytes[at..at + width].copy_from_slice(&there[at..at + width]);
        }
        let as_relocated = Holds::of(relocated.bytes == there);
        let count = self.rewriting.entry(section.name.clone()).or_default();
        count.all += 1;
        match as_relocated {
            _ if there == places.ko.bytes_of(index)? => count.as_in_the_file += 1,
            Holds::Yes => count.as_relocated += 1,
            Holds::No => count.rewritten += 1,
        }
        let name = section.name.as_str();
        if !ONLY_RELOCATED.contains(&name) && !AS_IN_THE_FILE.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(());
        }
        for (at, width) in &relocated.fields {
            let field = *at..at + width;
            let holds = Holds::of(relocated.bytes[field.clone()] == there[field]);
            self.check("relocations have been applied", holds, || format!("{module} {name}+{at:#x}"));
        }
        let what = match relocated.fields.len() {
            0 => "sections without relocations are as in the file",
            _ => "sections of data are as in the file but for relocations",
        };
        self.check(what, as_relocated, || format!("{module} {name}"));
        Ok(())
    }
}

/// Returns the number of records of a file's `.static_call_sites` that name a trampoline instead of the key.
fn sites_by_trampoline(ko: &Ko<'_>) -> Result<usize> {
    let mut found = 0;
    for (index, _) in ko.numbered().filter(|(_, section)| section.name == ".static_call_sites") {
        for relocation in ko.relocations(index)?.iter().filter(|relocation| relocation.offset % 8 == 4) {
            found += usize::from(ko.symbol(relocation.symbol)?.name.starts_with("__SCT__"));
        }
    }
    Ok(found)
}

/// The result of a check.
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
