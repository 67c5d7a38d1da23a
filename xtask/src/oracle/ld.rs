//! A comparison with GNU ld: links a boot's modules with the same sections at the same addresses and with the same
//! symbols, and compares with `modhost image` before any code is rewritten.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::elf;

use super::image::{BatchExtent, Modhost};
use super::judged::{safe, write};
use super::ko::{Ko, PERCPU};
use super::symbols::GuestSymbols;
use crate::Result;

/// The folder, within a module's folder, for our output and for the input and output of ld.
const FOLDER: &str = "relocated";

/// Notes that ld does not copy from files, because it makes its own.
const LDS_OWN: [&str; 2] = [".note.gnu.property", ".note.gnu.build-id"];

/// The modules of a boot that ld links.
pub(crate) struct LdLink<'l> {
    pub(crate) folder: &'l Path,
    pub(crate) kernel: &'l Path,
    /// The names, and the paths below the package's folder.
    pub(crate) modules: Vec<(String, PathBuf)>,
}

/// The result of a comparison.
#[derive(Default)]
pub(crate) struct LdOutcome {
    modules: usize,
    sections: usize,
    /// Sections that relocations have changed.
    relocated: usize,
    /// One line per difference.
    pub(crate) differences: Vec<String>,
}

impl LdOutcome {
    pub(crate) fn report(&self) -> String {
        let LdOutcome { modules, sections, relocated, differences } = self;
        let different = differences.len();
        format!(
            "{modules} modules linked by ld, {sections} sections, {relocated} of them relocated; {different} differ\n"
        )
    }
}

impl LdLink<'_> {
    /// Links all modules both ways, and compares.
    pub(crate) fn compare(&self, modhost: &Modhost) -> Result<LdOutcome> {
        eprint!("{}", self.make(modhost)?);
        let text = fs::read_to_string(self.folder.join("symbols"))?;
        let symbols = GuestSymbols::parse(&text)?;
        let (exports, mut outcome) = (symbols.exports(), LdOutcome::default());
        for (name, path) in &self.modules {
            let place = |symbol: &str| symbols.global(symbol).or_else(|| exports.get(symbol).copied());
            self.module(name, path, place, &mut outcome).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(outcome)
    }

    fn module_folder(&self, name: &str) -> PathBuf {
        self.folder.join("modules").join(name)
    }

    fn make(&self, modhost: &Modhost) -> Result<String> {
        let mut lines = String::new();
        for (name, path) in &self.modules {
            let (file, folder) = (self.kernel.join(path), format!("modules/{name}"));
            lines.push_str(&format!("{} {folder}/addresses {folder}/facts {folder}/{FOLDER}\n", file.display()));
        }
        let list = self.folder.join("ld.txt");
        write(&list, lines)?;
        modhost.images(&list, self.folder, BatchExtent::Relocated)
    }

    fn module(
        &self,
        name: &str,
        path: &Path,
        place: impl Fn(&str) -> Option<u64>,
        outcome: &mut LdOutcome,
    ) -> Result<()> {
        let bytes = fs::read(self.kernel.join(path))?;
        let (ko, folder) = (Ko::parse(&bytes)?, self.module_folder(name));
        let addresses = addresses(&folder)?;
        let ours = folder.join(FOLDER);
        let (script, input, output) = (ours.join("ld%script"), ours.join("ld%input"), ours.join("ld%output"));
        write(&script, script_of(&ko, &addresses, place)?)?;
        write(&input, unmerged(&bytes, ko.sections.len())?)?;
        let options = ["-static", "-nostdlib", "-N", "--no-relax", "--no-check-sections", "-e", "0"];
        let mut ld = Command::new("ld");
        let said = ld.args(options).arg("-T").arg(&script).arg("-o").arg(&output).arg(&input).output()?;
        if !said.status.success() {
            return Err(String::from_utf8_lossy(&said.stderr).into());
        }
        let linked = fs::read(&output)?;
        let linked = Ko::parse(&linked)?;
        let theirs: HashMap<&str, usize> =
            linked.numbered().map(|(index, section)| (section.name.as_str(), index)).collect();
        outcome.modules += 1;
        for (index, section) in ko.numbered().filter(|(_, section)| section.is_kept() && section.size > 0) {
            if section.kind == elf::SHT_NOBITS || LDS_OWN.contains(&section.name.as_str()) {
                continue;
            }
            let theirs = theirs.get(section.name.as_str()).ok_or_else(|| format!("ld made no {}", section.name))?;
            let theirs = linked.bytes_of(*theirs)?;
            let ours = fs::read(ours.join(safe(&section.name)))?;
            outcome.sections += 1;
            outcome.relocated += usize::from(ours != ko.bytes_of(index)?);
            if ours != theirs {
                let at = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
                outcome.differences.push(format!("{name} {} from {at:x?} on", section.name));
            }
        }
        Ok(fs::remove_dir_all(ours)?)
    }
}

/// Returns the addresses of the sections in a module's folder, including its per-CPU data.
fn addresses(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let mut text = fs::read_to_string(folder.join("addresses"))?;
    let facts = fs::read_to_string(folder.join("facts"))?;
    let percpu = facts.lines().find_map(|line| line.strip_prefix("percpu "));
    text.extend(percpu.map(|address| format!("{PERCPU} {address}\n")));
    let address = |line: &str| -> Result<(String, u64)> {
        let (name, address) = line.split_once(" 0x").ok_or("a section without an address")?;
        Ok((name.to_owned(), u64::from_str_radix(address, 16)?))
    };
    text.lines().map(address).collect()
}

/// Returns a linker script with each symbol that the module needs, and each section at its address. Empty sections are
/// included, because symbols lie in them.
fn script_of(ko: &Ko<'_>, addresses: &BTreeMap<String, u64>, place: impl Fn(&str) -> Option<u64>) -> Result<String> {
    let mut script = String::new();
    for symbol in ko.symbols() {
        let symbol = symbol?;
        // A weak symbol may be missing. For ld it is 0 then, too.
        let address = Some(symbol.name.as_str()).filter(|_| symbol.section == elf::SHN_UNDEF).and_then(&place);
        script.extend(address.map(|address| format!("\"{}\" = {address:#x};\n", symbol.name)));
    }
    script.push_str("SECTIONS {\n");
    for section in &ko.sections {
        let address = addresses.get(&section.name);
        script.extend(address.map(|address| format!("  {0} {address:#x} : {{ . = .; *({0}) }}\n", section.name)));
    }
    script.push_str("  /DISCARD/ : { *(*) }\n}\n");
    Ok(script)
}

/// Returns the file with flags that keep ld from merging sections, because Linux does not merge them either.
fn unmerged(bytes: &[u8], sections: usize) -> Result<Vec<u8>> {
    /// In the file's header: the position of the offset of the section headers. In a section header: the position of
    /// the flags, and the size of the header.
    const TABLE: usize = 40;
    const FLAGS: usize = 8;
    const HEADER: usize = 64;
    let mut bytes = bytes.to_vec();
    let word = |bytes: &[u8], at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).copied();
    let table = usize::try_from(u64::from_le_bytes(word(&bytes, TABLE).ok_or("no header")?))?;
    for section in 0..sections {
        let at = table + section * HEADER + FLAGS;
        let flags = u64::from_le_bytes(word(&bytes, at).ok_or("no section header")?);
        let flags = flags & !(elf::SHF_MERGE.0 | elf::SHF_STRINGS.0);
        bytes[at..at + 8].copy_from_slice(&flags.to_le_bytes());
    }
    Ok(bytes)
}
