//! Builds the fuzz targets with a stable compiler and runs them. All features of rustc that libFuzzer needs are stable.
//! libfuzzer-sys contains the runtime, which a C++ compiler builds.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::options::Options;
use crate::process::{self, cargo, target_folder};
use crate::seeds::{self, TARGETS};

/// The instrumentation of cargo-fuzz: edge counters, a table of code addresses, and the operands of comparisons.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// The target is given explicitly, so that build scripts and procedural macros are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Builds all targets, then runs the requested ones, one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let seconds: u32 = options.number("seconds")?;
    let wanted = options.text("target");
    let targets: Vec<_> = TARGETS.iter().filter(|(name, _)| wanted == "all" || wanted == *name).collect();
    if targets.is_empty() {
        return Err(format!("no such target: {wanted}").into());
    }
    let folder = target_folder().join("fuzz");
    let words = ["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target", TRIPLE];
    process::run(cargo().args(words).env("RUSTFLAGS", RUSTFLAGS).env("CARGO_TARGET_DIR", &folder))?;
    let files = seeds::all()?;
    for (name, wrap) in targets {
        let [corpus, seeds, artifacts] = ["corpus", "seeds", "artifacts"].map(|kind| folder.join(kind).join(name));
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        seeds::write(&files, *wrap, &seeds)?;
        let mut target = Command::new(folder.join(TRIPLE).join("release").join(name));
        target.args([corpus, seeds]).arg(format!("-artifact_prefix={}/", artifacts.display()));
        target.arg(format!("-max_total_time={seconds}")).arg("-timeout=10");
        report(name, &mut target, &folder.join(format!("{name}.log")))?;
    }
    Ok(())
}

/// Runs a target. Prints its start and its end, or fails with its finding. Its other output is in a log.
fn report(name: &str, target: &mut Command, log: &Path) -> Result<()> {
    let status = target.stderr(File::create(log)?).status()?;
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    if !status.success() {
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        return Err(format!("{end}\n{name}: {status}; all of it is in {}", log.display()).into());
    }
    for line in lines.iter().filter(|line| line.contains("INITED") || line.contains("DONE")) {
        eprintln!("{name}: {line}");
    }
    Ok(())
}
