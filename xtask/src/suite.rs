//! Runs the workspace's test programs, several at a time. `cargo test` runs them one after the other, and most of them wait more
//! than they compute.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use modload_fixtures::workspace_root;
use serde_json::Value;

use crate::Result;
use crate::options::Options;
use crate::process::{cargo, output, run};

/// Test targets that `quick` leaves out and `test` runs first: they poke text for seconds, run gdb, wait for limits, or compile
/// hundreds of objects.
pub(crate) const SLOW: &[&str] = &[
    "clumsy",
    "concurrency",
    "deps",
    "expectations_hold",
    "explain",
    "faults",
    "fixtures",
    "forks",
    "frames",
    "ftrace_fire",
    "ftrace_leaving",
    "ftrace_stacks",
    "holding",
    "kernel",
    "klp_deferred",
    "link",
    "livepatch",
    "malformed",
    "memory",
    "mutants",
    "odd_objects",
    "poke",
    "render",
    "sdk_header",
    "sdk_records",
    "serve",
    "server",
    "sleepers",
    "static_keys",
    "trace",
    "unwinding",
    "watched",
];

/// A program with the tests of one target.
struct TestProgram {
    /// `PACKAGE/TARGET`.
    name: String,
    executable: PathBuf,
    /// The folder of the package: tests run there.
    folder: PathBuf,
    is_slow: bool,
}

/// The number of test programs that run at the same time, unless an option says otherwise.
pub(crate) const LANES: usize = 2;

/// Runs all test programs, then the examples in the documentation.
pub(crate) fn test(options: &Options) -> Result<()> {
    let mut failed = run_programs(&[], options.number("lanes")?)?;
    if run(cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--doc"])).is_err() {
        failed.push("examples in the documentation".into());
    }
    none_of(&failed)
}

/// Fails if any test program failed, and names all that did.
pub(crate) fn none_of(failed: &[String]) -> Result<()> {
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

/// Builds the test programs that cargo's options `selected` select, all by default, and runs them, `lanes` at a time, the slow ones
/// first. One that fails hides no other: returns the names of those that failed.
pub(crate) fn run_programs(selected: &[&str], lanes: usize) -> Result<Vec<String>> {
    let mut programs = build(selected)?;
    programs.sort_by_key(|program| !program.is_slow);
    let begun = Instant::now();
    let queue = Mutex::new(VecDeque::from(programs));
    let ended = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..lanes.max(1) {
            scope.spawn(|| {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                while let Some(program) = next() {
                    let begun = Instant::now();
                    let mut command = Command::new(&program.executable);
                    command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
                    let result = command.output();
                    let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    ended.push(report(program.name, begun.elapsed(), result));
                }
            });
        }
    });
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by_key(|(_, took, _)| std::cmp::Reverse(*took));
    for (name, took, _) in ended.iter().take(12) {
        eprintln!("{:>5} s  {name}", took.as_secs());
    }
    eprintln!("{} programs in {} s", ended.len(), begun.elapsed().as_secs());
    Ok(ended.into_iter().filter(|(.., passed)| !passed).map(|(name, ..)| name).collect())
}

/// Prints the output of a program, and returns its name, its time and whether all of its tests passed.
fn report(name: String, took: Duration, result: std::io::Result<Output>) -> (String, Duration, bool) {
    let (status, passed) = match result {
        Err(error) => (error.to_string(), false),
        Ok(output) => {
            eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            (output.status.to_string(), output.status.success())
        }
    };
    eprintln!("== {} s: {name}: {status}\n", took.as_secs());
    (name, took, passed)
}

/// Builds test programs of the workspace.
fn build(selected: &[&str]) -> Result<Vec<TestProgram>> {
    let mut build = cargo();
    build.args(["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    let messages = output(build.args(selected))?;
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)?;
        let (Some(executable), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let folder = PathBuf::from(manifest).parent().map(PathBuf::from).ok_or("a manifest is in a folder")?;
        let package = folder.strip_prefix(workspace_root()).unwrap_or(&folder).display().to_string();
        let target = message["target"]["name"].as_str().unwrap_or_default();
        programs.push(TestProgram {
            name: format!("{package}/{target}"),
            executable: executable.into(),
            is_slow: SLOW.contains(&target),
            folder,
        });
    }
    Ok(programs)
}
