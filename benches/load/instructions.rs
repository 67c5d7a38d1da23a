//! Counts the instructions that modload executes to load and to unload an object, with valgrind's callgrind, and compares the counts
//! with `instructions.txt`. A count hardly depends on what else the machine does, so that one run shows a change of a few per cent. What
//! the kernel does is not counted.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode};

use modload::{Host, Module};

use crate::contenders::{add_of, load};
use crate::objects::Object;

/// The figures in the repository.
const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/load/instructions.txt");
/// The largest accepted difference from the figures, in per cent.
const TOLERANCE: f64 = 3.0;
/// The number of cycles before counting: buffers and lists have their final size then.
const WARM_UP: u32 = 5;
/// The number of counted cycles.
const CYCLES: u32 = 20;
/// The environment variable that tells a process under callgrind the file of its object.
pub(crate) const COUNTED: &str = "MODLOAD_BENCHES_COUNTED";

/// Counts, and prints the counts next to the figures. `--write` replaces the figures. `--check` fails if a count differs by more
/// than [`TOLERANCE`], and compares nothing if the figures were counted with other compilers or on another kind of processor.
pub(crate) fn run(objects: &[&Object], check: bool, write: bool) -> Result<ExitCode, Box<dyn Error>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        writeln!(io::stderr(), "SKIPPED counting instructions: valgrind is missing")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut counts = BTreeMap::new();
    for object in objects {
        for function in ["load", "unload"] {
            counts.insert(format!("{} {function}", object.name), count(&object.path, function)?);
        }
    }
    let conditions = conditions()?;
    if write {
        let mut text = format!(
            "# Instructions of a load and of an unload from a file. Counted by\n# cargo bench -p modload-benches --bench load -- --instructions --write\n{conditions}\n"
        );
        for (name, count) in &counts {
            writeln!(text, "{name} {count}")?;
        }
        fs::write(FIGURES, text)?;
    }
    let text = fs::read_to_string(FIGURES)?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let same_conditions = lines.next() == Some(conditions.as_str());
    let figures: BTreeMap<&str, u64> = lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, figure)| Ok((name, figure.parse()?)))
        .collect::<Result<_, std::num::ParseIntError>>()?;
    let mut out = io::stdout();
    let mut met = true;
    for (name, count) in &counts {
        let Some(&figure) = figures.get(name.as_str()) else {
            return Err(format!("{FIGURES}: there is no figure for {name}; count again with --write").into());
        };
        let change = (f64::from(u32::try_from(*count)?) / f64::from(u32::try_from(figure)?) - 1.0) * 100.0;
        let differs = change.abs() > TOLERANCE;
        met &= !differs;
        writeln!(
            out,
            "{name:<14} {count:>10} instructions, figure {figure:>10}: {change:+.1} %{}",
            if differs { "  DIFFERS" } else { "" }
        )?;
    }
    if !same_conditions {
        writeln!(
            io::stderr(),
            "SKIPPED comparing instructions: the figures were counted under other conditions than {conditions}"
        )?;
    } else if check && !met {
        writeln!(
            io::stderr(),
            "instructions differ by more than {TOLERANCE} %: find out why; if it has to be, count again with --write, and say why in the commit"
        )?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The features of processors by which the C library selects its functions that copy memory.
const FEATURES: [&str; 5] = ["avx2", "avx512vl", "erms", "fsrm", "rtm"];

/// Returns what counts depend on: the versions of rustc and of the C compiler, and the processor's [`FEATURES`].
fn conditions() -> Result<String, Box<dyn Error>> {
    let first_line = |program: &str| -> Result<String, Box<dyn Error>> {
        let output = Command::new(program).arg("--version").output()?;
        Ok(String::from_utf8(output.stdout)?.lines().next().unwrap_or_default().to_owned())
    };
    let processor = fs::read_to_string("/proc/cpuinfo")?;
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |feature: &&str| flags.split_whitespace().any(|flag| flag == *feature);
    let features: Vec<_> = FEATURES.into_iter().filter(has).collect();
    Ok(format!("{}; {}; {}", first_line("rustc")?, first_line("gcc")?, features.join(" ")))
}

/// Returns the instructions of one call of `counted_load` or `counted_unload`, the average of [`CYCLES`].
fn count(object: &Path, function: &str) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--smc-check=all", "--collect-atstart=no"])
        .arg(format!("--toggle-collect=*counted_{function}*"))
        .arg(std::env::current_exe()?)
        // The environment lies on the first thread's stack, which an unload examines: each variable changes the count.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env(COUNTED, object)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("callgrind: {}: {said}", output.status).into());
    }
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .ok_or_else(|| format!("callgrind counts nothing: {said}"))?;
    let count = collected.1.trim().parse::<u64>()? / u64::from(CYCLES);
    // A function that the compiler has inlined is never entered.
    if count == 0 { Err(format!("callgrind does not see counted_{function}").into()) } else { Ok(count) }
}

/// Loads, calls and unloads the object [`WARM_UP`] times uncounted, then [`CYCLES`] times counted.
pub(crate) fn cycles(object: &Path) -> Result<(), Box<dyn Error>> {
    let host = Host::builder().process_symbols().build()?;
    for cycle in 0..WARM_UP + CYCLES {
        let counted = cycle >= WARM_UP;
        let module = if counted { counted_load(&host, object) } else { load(&host, object) }?;
        black_box(add_of(&module)?(2, 3));
        if counted { counted_unload(module) } else { module.unload().map_err(Into::into) }?;
    }
    Ok(())
}

#[inline(never)]
fn counted_load(host: &Host, object: &Path) -> Result<Module, Box<dyn Error>> {
    black_box(load(host, object))
}

#[inline(never)]
fn counted_unload(module: Module) -> Result<(), Box<dyn Error>> {
    black_box(module.unload().map_err(Into::into))
}
