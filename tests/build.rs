//! Compiles functions of the test programs themselves, with sites at their entries, into a static library.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const FLAGS: [&str; 8] =
    ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-fcf-protection=none", "-fasynchronous-unwind-tables", "-c"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=entries");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap_or_default());
    let (patchable, counted) = (out.join("patchable.o"), out.join("counted.o"));
    let mut archive = Command::new("ar");
    archive.arg("crs").arg(out.join("libentries.a")).args([&patchable, &counted]);
    let nops = ["-fpatchable-function-entry=5"];
    let made = run(&mut compile("cc", "patchable", "__patchable_function_entries", &nops, &patchable))
        .and_then(|()| calls_of_fentry(&counted))
        .and_then(|()| run(&mut archive));
    if let Err(failed) = made {
        println!("cargo::error={failed}");
        return ExitCode::FAILURE;
    }
    println!("cargo::rustc-link-search=native={}", out.display());
    // LLVM's linker takes a table that nothing but its own `__start_` symbol refers to for unused.
    println!("cargo::rustc-link-arg-tests=-Wl,-z,nostart-stop-gc");
    // Segments that begin at large pages have unmapped pages between them.
    println!("cargo::rustc-link-arg-bin=holes=-Wl,-z,max-page-size=0x200000");
    ExitCode::SUCCESS
}

/// Functions that call `__fentry__`. gcc writes the table of these calls. Without gcc there are no such calls,
/// and the test that needs them is skipped, with a message.
fn calls_of_fentry(object: &Path) -> Result<(), String> {
    let calls = ["-pg", "-mfentry", "-mrecord-mcount"];
    if run(&mut compile("gcc", "counted", "__mcount_loc", &calls, object)).is_err() {
        return run(&mut compile("cc", "counted", "__mcount_loc", &[], object));
    }
    // The dynamic linker writes the table's addresses, and gcc makes the table read-only: LLVM's linker refuses that
    // in a position-independent executable.
    run(Command::new("objcopy").args(["--set-section-flags", "__mcount_loc=alloc,data"]).arg(object))
}

fn compile(compiler: &str, kind: &str, table: &str, entries: &[&str], object: &Path) -> Command {
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(entries).arg(format!("-DKIND={kind}")).arg(format!("-DSECTION={table}"));
    command.arg("-o").arg(object).arg("entries/entries.c");
    command
}

fn run(step: &mut Command) -> Result<(), String> {
    match step.status() {
        Ok(status) if status.success() => Ok(()),
        failed => Err(format!("{step:?}: {failed:?}")),
    }
}
