//! The record of a boot: the loaded modules, the memory, the symbols.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::dump::Dump;
use super::facts::Loaded;
use crate::Result;

/// A module that the guest was told to load.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) errno: i32,
    pub(crate) milliseconds: u64,
    pub(crate) name: String,
    /// The path below the package's folder.
    pub(crate) path: PathBuf,
}

/// The text files of the guest.
pub(crate) struct Texts {
    pub(crate) kallsyms: String,
    pub(crate) cpuinfo: String,
    pub(crate) version: String,
    pub(crate) cmdline: String,
    modules: String,
    sections: String,
    results: String,
}

impl Texts {
    pub(crate) fn of(dump: &Dump) -> Result<Texts> {
        Ok(Texts {
            kallsyms: dump.file("/proc/kallsyms")?,
            cpuinfo: dump.file("/proc/cpuinfo")?,
            version: dump.file("/proc/version")?,
            cmdline: dump.file("/proc/cmdline")?,
            modules: dump.file("/proc/modules")?,
            sections: dump.file("/sections")?,
            results: dump.file("/results")?,
        })
    }

    /// Returns the result of each load, in load order. `files` gives their paths by file name.
    pub(crate) fn attempts(&self, files: &HashMap<String, PathBuf>) -> Result<Vec<Attempt>> {
        let mut attempts = Vec::new();
        for line in self.results.lines() {
            let mut words = line.splitn(3, ' ');
            let (Some(errno), Some(time), Some(path)) = (words.next(), words.next(), words.next()) else {
                return Err(format!("no result: {line}").into());
            };
            let file = path.rsplit('/').next().unwrap_or(path);
            attempts.push(Attempt {
                errno: errno.parse()?,
                milliseconds: time.parse()?,
                name: file.trim_end_matches(".ko").replace('-', "_"),
                path: files.get(file).ok_or_else(|| format!("the package has no {file}"))?.clone(),
            });
        }
        Ok(attempts)
    }

    /// Returns the modules that stayed loaded, by name.
    pub(crate) fn loaded(&self) -> Result<BTreeMap<&str, Loaded<'_>>> {
        let mut loaded = BTreeMap::new();
        for line in self.modules.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [name, _, _, _, "Live", address, ..] = words[..] else {
                return Err(format!("not live: {line}").into());
            };
            loaded.insert(name, Loaded { name, start: hexadecimal(address)?, listed: BTreeMap::new() });
        }
        for line in self.sections.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [module, section, address] = words[..] else { return Err(format!("no section: {line}").into()) };
            if let Some(module) = loaded.get_mut(module) {
                module.listed.insert(section, hexadecimal(address)?);
            }
        }
        Ok(loaded)
    }
}

/// Parses a number with or without 0x.
fn hexadecimal(text: &str) -> Result<u64> {
    Ok(u64::from_str_radix(text.trim_start_matches("0x"), 16)?)
}

/// Returns the module files of a package: the paths below its folder, by file name.
pub(crate) fn files(kernel: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    for path in modload_fixtures::Kernel::at(kernel).modules()? {
        let name = path.file_name().ok_or("a module without a name")?.to_string_lossy().into_owned();
        files.insert(name, path.strip_prefix(kernel)?.to_owned());
    }
    Ok(files)
}

/// Returns a section's name as a file name, as `modhost image --out` writes it.
pub(crate) fn safe(name: &str) -> String {
    let mut safe = String::new();
    for letter in name.chars() {
        if letter.is_ascii_alphanumeric() || "._-".contains(letter) {
            safe.push(letter);
        } else {
            safe.push_str(&format!("%{:02x}", u32::from(letter)));
        }
    }
    safe
}

/// Writes a file, and creates its folder if necessary.
pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::create_dir_all(path.parent().ok_or("a file without a folder")?)?;
    fs::write(path, contents).map_err(|error| format!("{}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::safe;

    #[test]
    fn names_of_sections_lead_nowhere_else() {
        assert_eq!(safe(".data..percpu-1"), ".data..percpu-1");
        assert_eq!(safe("../a b"), "..%2fa%20b");
    }
}
