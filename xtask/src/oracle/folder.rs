//! The folder of a boot, in the format of `modhost image`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::dump::KernelMemory;
use super::facts::{KeyNaming, Loaded};
use super::judged::{Attempt, Texts, safe, write};
use super::ko::Ko;
use super::machine::KernelState;
use super::symbols::GuestSymbols;
use crate::Result;

/// Writes the files for the whole boot.
pub(crate) fn write_machine(folder: &Path, texts: &Texts, machine: &KernelState) -> Result<()> {
    write(&folder.join("symbols"), &texts.kallsyms)?;
    write(&folder.join("cpu-caps"), machine.caps_file())?;
    write(&folder.join("facts"), machine.facts_file())?;
    write(&folder.join("kernel"), format!("{}{}", texts.version, texts.cmdline))
}

/// Writes `modules.txt` (name and file of each loaded module, in load order) and `refused.txt` (errno, name and file).
pub(crate) fn write_lists(folder: &Path, attempts: &[Attempt]) -> Result<()> {
    let (mut there, mut refused) = (String::new(), String::new());
    for Attempt { errno, name, path, .. } in attempts {
        match errno {
            0 => there.push_str(&format!("{name} {}\n", path.display())),
            _ => refused.push_str(&format!("{errno} {name} {}\n", path.display())),
        }
    }
    write(&folder.join("modules.txt"), there)?;
    write(&folder.join("refused.txt"), refused)
}

/// Returns how often each errno occurred.
pub(crate) fn refusals(attempts: &[Attempt]) -> String {
    let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
    for attempt in attempts.iter().filter(|attempt| attempt.errno != 0) {
        *counts.entry(attempt.errno).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(errno, count)| format!("{count} with errno {errno}")).collect();
    counts.join(", ")
}

/// Writes a module's folder: addresses, facts, and the bytes of its sections in memory. Returns the number of sections.
pub(crate) fn write_module(
    folder: &Path,
    loaded: &Loaded<'_>,
    ko: &Ko<'_>,
    machine: &KernelState,
    memory: &KernelMemory,
    symbols: &GuestSymbols<'_>,
) -> Result<usize> {
    let folder = folder.join("modules").join(loaded.name);
    let (mut lines, mut sections) = (String::new(), 0);
    fs::create_dir_all(folder.join("sections"))?;
    for (index, address) in loaded.addresses(ko) {
        let section = &ko.sections[index];
        lines.push_str(&format!("{} {address:#x}\n", section.name));
        if section.size > 0 && !section.is_init() {
            let bytes = memory.bytes(address, section.size);
            let bytes = bytes.ok_or_else(|| format!("the dump lacks {} of {}", section.name, loaded.name))?;
            write(&folder.join("sections").join(safe(&section.name)), bytes)?;
            sections += 1;
        }
    }
    write(&folder.join("addresses"), lines)?;
    for named in KeyNaming::ALL {
        let facts = loaded.facts_file(ko, memory, symbols, named)?;
        write(&folder.join(named.file()), machine.facts_file() + &facts)?;
    }
    Ok(sections)
}
