//! Reads the files that describe a machine and the addresses of modules in it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use modload::Features;
use modload::image::{Kallsyms, TargetMachine};
use modload::text::Addr;

use crate::failure::CommandFailure;
use crate::image::One;
use crate::operate_args::ImageArguments;

fn read(file: &Path) -> Result<Vec<u8>, CommandFailure> {
    fs::read(file).map_err(|error| CommandFailure::Read { file: file.to_owned(), source: error.into() })
}

fn read_text(file: &Path) -> Result<String, CommandFailure> {
    String::from_utf8(read(file)?).map_err(|_| bad(file, 1, "it is not UTF-8"))
}

fn bad(file: &Path, line: usize, problem: impl Into<String>) -> CommandFailure {
    CommandFailure::BadLine { file: file.to_owned(), line, problem: problem.into() }
}

/// Returns the machine that the options describe.
pub(super) fn machine(arguments: &ImageArguments) -> Result<TargetMachine, CommandFailure> {
    let symbols = Kallsyms::parse(&read(&arguments.symbols)?)
        .map_err(|error| bad(&arguments.symbols, error.line, error.problem))?;
    let features = match &arguments.cpu_caps {
        None => Features::NONE,
        Some(file) => Features::from_words(&words(file)?),
    };
    let machine = TargetMachine::new(Arc::new(symbols), features);
    match &arguments.facts {
        None => Ok(machine),
        Some(facts) => with_facts(machine, facts),
    }
}

/// Returns a machine with further facts.
pub(super) fn with_facts(mut machine: TargetMachine, facts: &Path) -> Result<TargetMachine, CommandFailure> {
    machine.take_facts(&read_text(facts)?).map_err(|error| bad(facts, error.line, error.problem))?;
    Ok(machine)
}

/// Parses hexadecimal words of 32 bits.
fn words(file: &Path) -> Result<Vec<u32>, CommandFailure> {
    let text = read_text(file)?;
    let word = |(line, word): (usize, &str)| {
        let digits = word.strip_prefix("0x").unwrap_or(word);
        u32::from_str_radix(digits, 16).map_err(|_| bad(file, line, format!("{word:?} is not a hexadecimal word")))
    };
    let words = (1..).zip(text.lines()).flat_map(|(line, text)| text.split_whitespace().map(move |word| (line, word)));
    words.map(word).collect()
}

/// Parses lines of `SECTION HEXADDRESS`.
pub(super) fn addresses(file: &Path) -> Result<HashMap<String, Addr>, CommandFailure> {
    let text = read_text(file)?;
    let mut addresses = HashMap::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let parsed = text.rsplit_once(char::is_whitespace).and_then(|(name, at)| {
            let digits = at.strip_prefix("0x").unwrap_or(at);
            Some((name.trim(), u64::from_str_radix(digits, 16).ok()?))
        });
        let (name, at) = parsed.ok_or_else(|| bad(file, line, "expected SECTION HEXADDRESS"))?;
        if addresses.insert(name.to_owned(), Addr::new(at)).is_some() {
            return Err(bad(file, line, format!("a second address for {name:?}")));
        }
    }
    Ok(addresses)
}

/// Parses lines of `FILE ADDRESSES [FACTS [DIR]]`. A `-` means none.
pub(super) fn list(file: &Path) -> Result<Vec<One>, CommandFailure> {
    let text = read_text(file)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let one = |(line, text): (usize, &str)| {
        let mut words = text.split_whitespace();
        let (Some(module), Some(addresses)) = (words.next(), words.next()) else {
            return Err(bad(file, line, "expected FILE ADDRESSES [FACTS [DIR]]"));
        };
        let mut more = || words.next().filter(|word| *word != "-").map(|word| folder.join(word));
        let (facts, out) = (more(), more());
        Ok(One { file: folder.join(module), addresses: folder.join(addresses), facts, out })
    };
    (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()).map(one).collect()
}

/// Returns the peak memory of this process in KiB.
pub(super) fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
