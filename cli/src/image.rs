//! `modhost image`: computes the bytes of a module in the memory of another machine. No code of the module runs.

mod diff;
mod inputs;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use modload::error::sentence;
use modload::file::{ModuleFile, SIZE_LIMIT};
use modload::image::{ImageSection, MemoryImage, TargetMachine};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::failure::CommandFailure;
use crate::operate_args::ImageArguments;
use crate::output::CommandOutput;

pub(crate) fn run(arguments: &ImageArguments, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let maker = Maker::of(arguments)?;
    let Some(list) = &arguments.batch else {
        let file = arguments.file.clone().unwrap_or_default();
        let addresses = arguments.addresses.clone().unwrap_or_default();
        let one = One { file, addresses, facts: None, out: arguments.out.clone() };
        let mut shares = Shares::default();
        let image = one.link(&maker, &mut shares)?;
        if let Some(memory) = &arguments.diff {
            return diff::show(&image, memory, output);
        }
        show(&image, output)?;
        one.write(&image)?;
        return Ok(output.flush()?);
    };
    batch(list, &maker, output)
}

/// The machine, and how far the work goes.
struct Maker {
    machine: TargetMachine,
    extent: ImageExtent,
}

/// The last step of the work.
#[derive(Clone, Copy)]
enum ImageExtent {
    Relocated,
    Rewritten,
}

impl Maker {
    fn of(arguments: &ImageArguments) -> Result<Maker, CommandFailure> {
        let extent = if arguments.only_relocate { ImageExtent::Relocated } else { ImageExtent::Rewritten };
        Ok(Maker { machine: inputs::machine(arguments)?, extent })
    }
}

/// Makes the images of all modules in a list, in this one process.
fn batch(list: &Path, maker: &Maker, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    let (mut shares, mut failed, mut sections) = (Shares::default(), 0, 0);
    let all = inputs::list(list)?;
    for one in &all {
        match one.link(maker, &mut shares) {
            Ok(image) => {
                sections += image.sections.len();
                one.write(&image)?;
            }
            Err(failure) => {
                failed += 1;
                output.say(&sentence(&failure))?;
                output.value(&json!({ "file": one.file.to_string_lossy(), "error": sentence(&failure) }))?;
            }
        }
    }
    output.heading(&format!("{} modules, {failed} refused, {sections} sections", all.len()))?;
    let total = shares.total();
    let shown = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    for (name, time) in &shares.times {
        let percent = 100.0 * time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        output.say(&format!("{name:<16} {:>12} {percent:>5.1} %", shown(*time)))?;
    }
    let peak = inputs::peak_memory().map_or_else(String::new, |kib| format!(", peak memory {} MiB", kib / 1024));
    output.say(&format!("{:<16} {:>12}{peak}", "in all", shown(total)))?;
    let times: serde_json::Map<_, _> =
        shares.times.iter().map(|(name, time)| ((*name).to_owned(), json!(time.as_micros()))).collect();
    let peak = inputs::peak_memory();
    output.value(
        &json!({ "modules": all.len(), "refused": failed, "sections": sections, "us": times, "peak_kib": peak }),
    )?;
    output.flush()?;
    if failed == 0 { Ok(()) } else { Err(CommandFailure::NotLinked { failed, of: all.len() }) }
}

/// The time that each part of the work took.
#[derive(Default)]
struct Shares {
    times: Vec<(&'static str, Duration)>,
}

impl Shares {
    fn add(&mut self, name: &'static str, time: Duration) {
        match self.times.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += time,
            None => self.times.push((name, time)),
        }
    }

    fn total(&self) -> Duration {
        self.times.iter().map(|(_, time)| *time).sum()
    }
}

/// One module: its file, the addresses of its sections, further facts, and the folder for its bytes.
struct One {
    file: PathBuf,
    addresses: PathBuf,
    facts: Option<PathBuf>,
    out: Option<PathBuf>,
}

impl One {
    fn link(&self, maker: &Maker, shares: &mut Shares) -> Result<MemoryImage, CommandFailure> {
        let mut last = Instant::now();
        let mut share = |name| {
            shares.add(name, last.elapsed());
            last = Instant::now();
        };
        let read = ModuleFile::read(&self.file, SIZE_LIMIT);
        let file = read.map_err(|source| CommandFailure::Read { file: self.file.clone(), source })?;
        let addresses = inputs::addresses(&self.addresses)?;
        let with_facts = match &self.facts {
            None => None,
            Some(facts) => Some(inputs::with_facts(maker.machine.clone(), facts)?),
        };
        share("read");
        let machine = with_facts.as_ref().unwrap_or(&maker.machine);
        let image = match maker.extent {
            ImageExtent::Rewritten => machine.image(&file.bytes, &addresses, share),
            ImageExtent::Relocated => {
                let image = machine.relocated(&file.bytes, &addresses);
                share("relocated");
                image
            }
        };
        image.map_err(|source| CommandFailure::Inspect { file: self.file.clone(), source: source.into() })
    }

    /// Writes the bytes of the sections to files with safe names.
    fn write(&self, image: &MemoryImage) -> Result<(), CommandFailure> {
        let Some(folder) = &self.out else { return Ok(()) };
        std::fs::create_dir_all(folder)?;
        for section in &image.sections {
            std::fs::write(folder.join(safe_name(section)), &section.bytes)?;
        }
        Ok(())
    }
}

/// Returns a section's name as a file name. Characters that could lead to another folder are escaped.
fn safe_name(section: &ImageSection) -> String {
    let mut name = String::new();
    for c in section.name.chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') {
            name.push(c);
        } else {
            let _ = write!(name, "%{:02x}", u32::from(c));
        }
    }
    // These two names are folders.
    if matches!(&*name, "." | "..") { name.replace('.', "%2e") } else { name }
}

fn show(image: &MemoryImage, output: &mut CommandOutput) -> Result<(), CommandFailure> {
    for section in &image.sections {
        let digest = Sha256::digest(&section.bytes);
        let hash = digest.iter().fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
        let size = section.bytes.len();
        output.say(&format!("{} {:#x} {size} {hash}", section.name, section.at.get()))?;
        let at = format!("{:#x}", section.at.get());
        output.value(&json!({ "section": section.name, "address": at, "size": size, "sha256": hash }))?;
    }
    Ok(())
}
