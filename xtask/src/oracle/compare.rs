//! Compares our bytes with Linux's: every read-only section of every module of a boot.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::facts::KeyNaming;
use super::image::{BatchExtent, Modhost};
use super::judged::{safe, write};
use super::ko::Ko;
use crate::Result;

/// The folder, within a module's folder, for our sections.
const OURS: &str = "ours";

/// The source of our bytes.
pub(crate) enum Ours {
    /// The unchanged file of the module: the result without any rewriting.
    File,
    /// The image of `modhost image`.
    Image(Modhost),
}

/// The folder of a boot, and the unpacked package.
pub(crate) struct BootFolder<'b> {
    pub(crate) folder: &'b Path,
    pub(crate) kernel: &'b Path,
}

/// The numbers of sections of one name.
#[derive(Clone, Copy, Default)]
struct Count {
    compared: usize,
    identical: usize,
    /// Sections that differ from the file.
    changed: usize,
    changed_identical: usize,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.compared += other.compared;
        self.identical += other.identical;
        self.changed += other.changed;
        self.changed_identical += other.changed_identical;
    }
}

/// The result of a comparison.
#[derive(Default)]
pub(crate) struct ComparisonOutcome {
    modules: usize,
    identical: usize,
    sections: BTreeMap<String, Count>,
    /// One line each: module, section, offset, our bytes, their bytes.
    pub(crate) differences: Vec<String>,
    /// Modules for which we could not make an image, with the reason.
    pub(crate) failures: Vec<String>,
}

impl ComparisonOutcome {
    fn add(&mut self, other: ComparisonOutcome) {
        self.modules += other.modules;
        self.identical += other.identical;
        for (name, count) in other.sections {
            self.sections.entry(name).or_default().add(count);
        }
        self.differences.extend(other.differences);
        self.failures.extend(other.failures);
    }

    /// Returns whether no section has been compared.
    pub(crate) fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Returns the statistics: all sections, then by name the sections of which some differ.
    pub(crate) fn report(&self) -> String {
        let mut all = Count::default();
        self.sections.values().for_each(|count| all.add(*count));
        let Count { compared, identical, changed, changed_identical } = all;
        let mut text = format!(
            "{} modules compared, {} identical, {} not made\n{compared} sections compared, {identical} identical; \
             Linux changed {changed} of them, {changed_identical} of these are identical\n",
            self.modules,
            self.identical,
            self.failures.len(),
        );
        for (name, count) in self.sections.iter().filter(|(_, count)| count.identical < count.compared) {
            let Count { compared, identical, changed, changed_identical } = count;
            text.push_str(&format!(
                "  {name:24} {compared:>6} compared {identical:>6} identical {changed:>6} changed {changed_identical:>6} of these identical\n"
            ));
        }
        text
    }
}

impl BootFolder<'_> {
    /// Returns the modules: name, and path below the package's folder.
    pub(crate) fn list(&self) -> Result<Vec<(String, PathBuf)>> {
        let list = fs::read_to_string(self.folder.join("modules.txt"))?;
        let named = |line: &str| line.split_once(' ').map(|(name, path)| (name.to_owned(), path.into()));
        Ok(list.lines().filter_map(named).collect())
    }

    /// Returns the folder with our sections of a module.
    fn ours(&self, name: &str) -> PathBuf {
        self.folder.join("modules").join(name).join(OURS)
    }

    /// Runs `modhost image` for all modules, with facts that name keys in this way. Returns its output.
    pub(crate) fn make(&self, modhost: &Modhost, named: KeyNaming) -> Result<String> {
        let facts = named.file();
        let mut lines = String::new();
        for (name, path) in self.list()? {
            let (file, ours) = (self.kernel.join(path), self.ours(&name));
            if ours.exists() {
                fs::remove_dir_all(ours)?;
            }
            let folder = format!("modules/{name}");
            lines.push_str(&format!("{} {folder}/addresses {folder}/{facts} {folder}/{OURS}\n", file.display()));
        }
        let list = self.folder.join("batch.txt");
        write(&list, lines)?;
        modhost.images(&list, self.folder, BatchExtent::Rewritten)
    }

    /// Compares all modules of `modules.txt`, on all CPUs.
    pub(crate) fn compare(&self, ours: &Ours) -> Result<ComparisonOutcome> {
        let modules = self.list()?;
        let (next, total) = (AtomicUsize::new(0), Mutex::new(ComparisonOutcome::default()));
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((name, path)) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.module(name, path, ours).unwrap_or_else(|error| ComparisonOutcome {
                            failures: vec![format!("{name}: {error}")],
                            ..ComparisonOutcome::default()
                        });
                        if let Ok(mut total) = total.lock() {
                            total.add(outcome);
                        }
                    }
                });
            }
        });
        let mut outcome = total.into_inner().map_err(|_| "a comparison has panicked")?;
        outcome.differences.sort();
        outcome.failures.sort();
        Ok(outcome)
    }

    fn module(&self, name: &str, path: &Path, ours: &Ours) -> Result<ComparisonOutcome> {
        let bytes = fs::read(self.kernel.join(path))?;
        let ko = Ko::parse(&bytes)?;
        let made = self.ours(name);
        if matches!(ours, Ours::Image(_)) && !made.exists() {
            return Err("modhost has made no image, for the reason printed above".into());
        }
        let mut outcome = ComparisonOutcome { modules: 1, ..ComparisonOutcome::default() };
        for (index, section) in ko.numbered().filter(|(_, section)| section.is_judged()) {
            let file = safe(&section.name);
            let theirs = fs::read(self.folder.join("modules").join(name).join("sections").join(&file))?;
            let plain = ko.bytes_of(index)?;
            let ours = match ours {
                Ours::File => plain.to_vec(),
                Ours::Image(_) => fs::read(made.join(&file)).map_err(|error| format!("{}: {error}", section.name))?,
            };
            let (identical, changed) = (usize::from(ours == theirs), usize::from(plain != theirs));
            let count = Count { compared: 1, identical, changed, changed_identical: identical * changed };
            outcome.sections.entry(section.name.clone()).or_default().add(count);
            if identical == 0 {
                outcome.differences.push(difference(name, &section.name, &ours, &theirs));
            }
        }
        outcome.identical = usize::from(outcome.differences.is_empty());
        // Files of identical modules are removed, because they are of no interest.
        if outcome.differences.is_empty() && made.exists() {
            fs::remove_dir_all(made)?;
        }
        Ok(outcome)
    }
}

/// Returns a line about the first difference of two sections.
fn difference(module: &str, section: &str, ours: &[u8], theirs: &[u8]) -> String {
    if ours.len() != theirs.len() {
        return format!("{module} {section} ours has {} bytes, theirs {}", ours.len(), theirs.len());
    }
    let differing =
        || ours.iter().zip(theirs).enumerate().filter(|(_, (ours, theirs))| ours != theirs).map(|(at, _)| at);
    let (at, count) = (differing().next().unwrap_or_default(), differing().count());
    let hex =
        |bytes: &[u8]| bytes[at..].iter().take(12).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    format!("{module} {section}+{at:#x} ours {} theirs {} ({count} bytes differ)", hex(ours), hex(theirs))
}

/// Writes all differences and failures to a file of the folder. Returns its path.
pub(crate) fn write_differences(folder: &Path, outcome: &ComparisonOutcome, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let lines = outcome.failures.iter().chain(&outcome.differences);
    write(&path, lines.map(|line| format!("{line}\n")).collect::<String>())?;
    Ok(path)
}
