//! Compares this loader with Linux itself: a QEMU machine loads Debian's modules, and the resulting memory is recorded,
//! so that `modhost image` can be compared with it. docs/linux-as-judge.md explains how.

mod boots;
mod choice;
mod initramfs;
mod guest;
mod dump;
mod symbols;
mod btf;
mod machine;
mod ko;
mod layout;
mod facts;
mod relocated;
mod judged;
mod folder;
mod checks;
mod image;
mod compare;
mod ld;
mod klp;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use boots::Boot;
use checks::Checks;
use choice::Choice;
use compare::{Ours, write_differences};
use dump::Dump;
use facts::KeyNaming;
use guest::Guest;
use image::Modhost;
use judged::Texts;
use ko::Ko;
use machine::KernelState;
use symbols::GuestSymbols;

use crate::options::Options;
use crate::process::target_folder;
use crate::{Result, kernel};

/// The maximum number of differences that are printed.
const SHOWN: usize = 20;

/// Boots if necessary. Writes the folder, checks it, and prints which sections Linux has changed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let boot = boots::named(options.text("boot"))?;
    let kernel = kernel::folder()?;
    let folder = folder(options, boot);
    let disk = dump(options, boot, &kernel, &folder)?;
    decode(&disk, &kernel, &folder)
}

/// Compares a folder that `run` has written with the images of `modhost`.
pub(crate) fn compare(options: &Options) -> Result<()> {
    let folder = written(options)?;
    let ours = match options.text("with") {
        "file" => Ours::File,
        "image" => Ours::Image(Modhost::build()?),
        other => return Err(format!("with={other}: it is image, or file for the files as they are").into()),
    };
    report(&kernel::folder()?, &folder, &ours)
}

/// Links some of the modules of a folder that `run` has written with GNU ld, and compares.
pub(crate) fn link(options: &Options) -> Result<()> {
    let (folder, kernel, count) = (written(options)?, kernel::folder()?, options.number::<usize>("modules")?);
    let (start, all) = (Instant::now(), compare::BootFolder { folder: &folder, kernel: &kernel }.list()?);
    // Evenly distributed in load order.
    let count = count.min(all.len());
    let modules = (0..count).map(|number| all[number * all.len() / count].clone()).collect();
    let outcome = ld::LdLink { folder: &folder, kernel: &kernel, modules }.compare(&Modhost::build()?)?;
    print!("{}", outcome.report());
    eprintln!("linked and compared in {:.1?}", start.elapsed());
    if outcome.differences.is_empty() { Ok(()) } else { Err(outcome.differences.join("\n").into()) }
}

/// Runs the scenes of live patching on Linux, and compares its log with ours.
pub(crate) fn live_patching(options: &Options) -> Result<()> {
    klp::run(options)
}

/// Returns the folder, if it has been written.
fn written(options: &Options) -> Result<PathBuf> {
    let folder = folder(options, boots::named(options.text("boot"))?);
    if folder.join("modules.txt").exists() {
        return Ok(folder);
    }
    Err(format!("{} is empty: run cargo xtask oracle first", folder.display()).into())
}

/// Returns the folder for all files of a boot.
fn folder(options: &Options, boot: &Boot) -> PathBuf {
    match options.text("out") {
        "" => target_folder().join("oracle").join(boot.name),
        out => PathBuf::from(out),
    }
}

/// Boots if an input has changed since the last time. Returns the guest's disk.
fn dump(options: &Options, boot: &'static Boot, kernel: &Path, folder: &Path) -> Result<PathBuf> {
    let start = Instant::now();
    let choice = Choice::of(kernel, options.text("modules"), &target_folder().join("oracle"))?;
    let count = choice.before.len() + choice.modules.len();
    eprintln!("{}: {count} modules, ordered in {:.1?}", boot.name, start.elapsed());
    let guest = Guest {
        boot,
        program: "init.c",
        kernel,
        folder: folder.join("guest"),
        megabytes: options.number("megabytes")?,
        limit: Duration::from_secs(options.number("seconds")?),
    };
    let (stamp, inputs) =
        (folder.join("inputs"), format!("{}{:?}\n{:?}\n", guest.inputs()?, choice.before, choice.modules));
    if options.text("again") != "no" || fs::read_to_string(&stamp).ok().as_ref() != Some(&inputs) {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        guest.run(|archive| choice.pack(archive))?;
        fs::write(&stamp, inputs)?;
    }
    Ok(guest.disk())
}

/// Writes the folder from the disk, with checks.
fn decode(disk: &Path, kernel: &Path, folder: &Path) -> Result<()> {
    let start = Instant::now();
    let dump = Dump::read(disk)?;
    let texts = Texts::of(&dump)?;
    let (attempts, loaded) = (texts.attempts(&judged::files(kernel)?)?, texts.loaded()?);
    let symbols = GuestSymbols::parse(&texts.kallsyms)?;
    let machine = KernelState::read(&dump.memory, &symbols)?;
    let (mut checks, exports) = (Checks::default(), symbols.exports());
    checks.machine(&machine, &texts, &dump.memory, &symbols)?;
    let mut sections = 0;
    if folder.join("modules").exists() {
        fs::remove_dir_all(folder.join("modules"))?;
    }
    for attempt in attempts.iter().filter(|attempt| attempt.errno == 0) {
        let module =
            loaded.get(attempt.name.as_str()).ok_or_else(|| format!("{} was loaded and is gone", attempt.name))?;
        let bytes = fs::read(kernel.join(&attempt.path))?;
        let ko = Ko::parse(&bytes)?;
        sections += folder::write_module(folder, module, &ko, &machine, &dump.memory, &symbols)?;
        checks.module(module, &ko, &dump.memory, &symbols, &exports)?;
    }
    checks.trampolines();
    folder::write_machine(folder, &texts, &machine)?;
    folder::write_lists(folder, &attempts)?;
    let refused = attempts.iter().filter(|attempt| attempt.errno != 0).count();
    let milliseconds: u64 = attempts.iter().map(|attempt| attempt.milliseconds).sum();
    eprintln!("{}\n{}", texts.version.trim_end(), machine.summary(&symbols));
    eprintln!(
        "{} modules loaded, {refused} refused ({}), in {milliseconds} ms of the guest's\n{sections} sections, {} bytes \
         of memory, decoded and checked in {:.1?}",
        loaded.len(),
        folder::refusals(&attempts),
        dump.memory.size(),
        start.elapsed(),
    );
    eprint!("checks that held or not:\n{}", checks.report());
    judged::write(&folder.join("rewriting.txt"), checks.rewriting())?;
    eprint!("what Linux did:\n{}", checks.rewriting());
    let shown: Vec<&str> = checks.failed.iter().take(SHOWN).map(String::as_str).collect();
    match checks.failed.len() {
        0 => Ok(()),
        count => Err(format!("{}\n{count} checks do not hold: this dump proves nothing", shown.join("\n")).into()),
    }
}

/// Compares, and prints the statistics.
fn report(kernel: &Path, folder: &Path, ours: &Ours) -> Result<()> {
    let boot = compare::BootFolder { folder, kernel };
    let Ours::Image(modhost) = ours else { return report_one(&boot, ours, "changed-by-linux.txt") };
    for named in KeyNaming::ALL {
        let made = boot.make(modhost, named)?;
        eprint!("keys by {named:?}\n{made}");
        report_one(&boot, ours, "differences.txt")?;
    }
    Ok(())
}

/// Compares the images, writes the differences to a file, and prints the statistics.
fn report_one(boot: &compare::BootFolder<'_>, ours: &Ours, differences: &str) -> Result<()> {
    let start = Instant::now();
    let outcome = boot.compare(ours)?;
    let path = write_differences(boot.folder, &outcome, differences)?;
    print!("{}", outcome.report());
    eprintln!("compared in {:.1?}; every difference is in {}", start.elapsed(), path.display());
    if outcome.is_empty() {
        return Err("nothing has been compared".into());
    }
    let found: Vec<&str> = outcome.failures.iter().chain(&outcome.differences).map(String::as_str).collect();
    match ours {
        Ours::Image(_) if !found.is_empty() => {
            Err(format!("{}\n{} differences", found[..found.len().min(SHOWN)].join("\n"), found.len()).into())
        }
        _ => Ok(()),
    }
}
