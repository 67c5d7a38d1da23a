//! Modules under a debugger and a profiler: `modload --gdb` and `--perf-map`, with the real gdb and perf.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use modload_fixtures::{Compiler, Fixture};

const MODLOAD: &str = env!("CARGO_BIN_EXE_modload");

fn main() -> ExitCode {
    let mut trials = Vec::new();
    let mut test = |name: &str, missing: Option<String>, run: fn() -> Result<(), Failed>| {
        if let Some(why) = &missing {
            // Written past the test harness's capture, so that the skipped test is visible.
            eprintln!("SKIPPED {name}: {why}");
        }
        trials.push(Trial::test(name, run).with_ignored_flag(missing.is_some()));
    };
    test("gdb_knows_functions_lines_and_frames_from_init_on", no_gdb(), functions_lines_and_frames);
    test("gdb_reads_compressed_debug_information", no_gdb(), compressed);
    test("gdb_forgets_a_module_that_goes", no_gdb(), forgotten);
    test("gdb_forgets_init_sections", no_gdb(), init_forgotten);
    test("gdb_attaches_to_a_host_that_has_modules", no_gdb(), attached);
    test("nobody_is_told_without_the_option", no_gdb(), untold);
    test("perf_reports_functions_by_name", no_perf(), reported);
    test("the_map_of_perf_is_written", None, map_is_written);
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn no_gdb() -> Option<String> {
    let version = Command::new("gdb").arg("--version").stdout(Stdio::null()).status();
    (!version.is_ok_and(|status| status.success())).then(|| "gdb is not installed".into())
}

/// Returns why perf cannot record here, or `None`.
fn no_perf() -> Option<String> {
    let record = ["record", "-e", "cpu-clock", "-o", "/dev/null", "--", "true"];
    match Command::new("perf").args(record).output() {
        Err(_) => Some("perf is not installed".into()),
        Ok(output) if !output.status.success() => {
            Some(format!("perf cannot record: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(_) => None,
    }
}

fn object(flags: &[&str]) -> PathBuf {
    let flags: Vec<_> = ["-O2", "-fPIC"].iter().chain(flags).copied().collect();
    Fixture::new("watched").object(Compiler::Cc, &flags).unwrap()
}

/// Returns the number of the fixture's line that contains this text.
fn line_with(what: &str) -> usize {
    let source = fs::read_to_string(Fixture::new("watched").folder().join("watched.c")).unwrap();
    source.lines().position(|line| line.contains(what)).unwrap() + 1
}

/// Runs gdb with commands on a program. An error ends gdb. Returns its output.
fn gdb(commands: &[&str], program: &[&str]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.args(["--signal=KILL", "1200", "gdb", "--batch", "--nx", "--quiet"]);
    for command in ["set pagination off", "set confirm off", "set breakpoint pending on", "set width 0"] {
        gdb.args(["-ex", command]);
    }
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.arg("--args").args(program);
    said(&gdb.env("DEBUGINFOD_URLS", "").stdin(Stdio::null()).output().unwrap())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Checks that these texts occur in this order.
fn in_order(text: &str, expected: &[&str]) -> Result<(), Failed> {
    let mut rest = text;
    for expected in expected {
        let Some(at) = rest.find(expected) else {
            return Err(format!("no \"{expected}\" (or not behind the one before it) in:\n{text}").into());
        };
        rest = &rest[at + expected.len()..];
    }
    Ok(())
}

fn functions_lines_and_frames() -> Result<(), Failed> {
    for flags in [&["-g"][..], &["-g", "-ffunction-sections"], &["-gdwarf-4"], &["-g", "-fno-pic"]] {
        let object = object(flags);
        let commands = [
            "break watched_start",
            "break watched_inner",
            "run",
            "continue",
            "backtrace 4",
            "finish",
            "info symbol $pc",
            "disable",
            "continue",
        ];
        let said = gdb(&commands, &[MODLOAD, "--gdb", "--call", "watched_outer=5", object.to_str().unwrap()]);
        let line = |what| format!("watched.c:{}", line_with(what));
        in_order(
            &said,
            &[
                "Breakpoint 1 (watched_start) pending",
                "Breakpoint 2 (watched_inner) pending",
                "Breakpoint 1, watched_start () at",
                &line("init's line"),
                "Breakpoint 2, watched_inner (a=",
                "#0  watched_inner (a=",
                "#1  0x",
                "in watched_outer (a=",
                &line("outer's line"),
                "#2  0x",
                "in watched_start () at",
                "#3  0x",
                "in modload_loader::modules::entry::init",
                "in watched_outer (a=",
                "Value returned is $1 = 41",
                "watched_outer + ",
                "watched_outer(5) = 14",
                "exited normally",
            ],
        )?;
    }
    Ok(())
}

fn compressed() -> Result<(), Failed> {
    let object = object(&["-g", "-gz"]);
    let commands = ["break watched_inner", "run", "backtrace 2"];
    let said = gdb(&commands, &[MODLOAD, "--gdb", object.to_str().unwrap()]);
    let line = format!("watched.c:{}", line_with("outer's line"));
    in_order(&said, &["Breakpoint 1, watched_inner (a=", "#1  0x", "in watched_outer (a=", &line])
}

/// Under gdb without debug information of the module: names and frames still exist.
fn forgotten() -> Result<(), Failed> {
    let object = object(&[]);
    let commands = [
        "break watched_inner",
        "break modload_loader::modules::chains::going",
        "run",
        "backtrace 3",
        "set $at = $pc",
        "info symbol $at",
        "delete 1",
        "continue",
        "info symbol $at",
        "finish",
        // By the time the command flushes its output, the module's memory has been freed.
        "break modload_cli::output::Output::flush",
        "continue",
        "info symbol $at",
    ];
    let said = gdb(&commands, &[MODLOAD, "--gdb", object.to_str().unwrap()]);
    in_order(
        &said,
        &[
            "Breakpoint 1, 0x",
            "in watched_inner ()",
            "#1  0x",
            "in watched_outer ()",
            "#2  0x",
            // One of init's two names, also without debug information.
            " ()",
            "watched_inner in section .text of <in-memory@0x",
            "watched_inner in section .text of <in-memory@0x",
            "No symbol matches $at.",
        ],
    )
}

/// A breakpoint in init code is removed once the module is LIVE: code that is later loaded at its address is not
/// changed.
fn init_forgotten() -> Result<(), Failed> {
    let object = object(&["-g"]);
    let commands = [
        "break watched_start",
        "run",
        "set $at = $pc",
        "break watched_init_result",
        "continue",
        "info symbol $at",
        "info breakpoints",
        "backtrace 1",
    ];
    let said = gdb(&commands, &[MODLOAD, "--gdb", "--call", "watched_init_result", object.to_str().unwrap()]);
    in_order(
        &said,
        &[
            "Breakpoint 1, watched_start () at",
            "Breakpoint 2, watched_init_result () at",
            "No symbol matches $at.",
            "<PENDING>",
            "watched_start",
            "#0  watched_init_result () at",
        ],
    )
}

/// A gdb that attaches later finds the modules.
fn attached() -> Result<(), Failed> {
    let object = object(&["-g"]);
    // gdb attaches during a call of the module.
    let mut modload = Command::new(MODLOAD);
    let mut modload =
        modload.args(["--gdb", "--call", "watched_spin=2000000"]).arg(object).stdin(Stdio::null()).spawn()?;
    let pid = modload.id().to_string();
    let mut said = String::new();
    for _ in 0..40 {
        let mut gdb = Command::new("timeout");
        gdb.args(["--signal=KILL", "600", "gdb", "--batch", "--nx", "--quiet", "-ex", "backtrace 2", "-p", &pid]);
        said = self::said(&gdb.env("DEBUGINFOD_URLS", "").output()?);
        if said.contains("watched_spin") || said.contains("ptrace: Operation not permitted") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    modload.kill()?;
    modload.wait()?;
    in_order(&said, &["#0  ", "watched_spin (millions=", "watched.c:", "#1  0x", "in modload"])
}

fn untold() -> Result<(), Failed> {
    let object = object(&["-g"]);
    let commands = ["break watched_inner", "run"];
    let said = gdb(&commands, &[MODLOAD, "--call", "watched_outer=5", object.to_str().unwrap()]);
    in_order(&said, &["pending", "watched_outer(5) = 14", "exited normally"])
}

fn reported() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("perf.data");
    let object = object(&[]);
    let mut perf = Command::new("timeout");
    perf.args(["--signal=KILL", "600", "perf", "record", "-q", "-e", "cpu-clock", "-F", "1000", "-o"]);
    perf.arg(&data).args(["--", MODLOAD, "--perf-map", "--call", "watched_spin=300"]).arg(object);
    let output = perf.output()?;
    in_order(&said(&output), &["watched_spin(300) = 0"])?;
    let mut report = Command::new("perf");
    report.args(["report", "--stdio", "-q", "--sort", "symbol", "-i"]).arg(&data);
    let report = said(&report.stdin(Stdio::null()).output()?);
    let line = report.lines().find(|line| line.contains("watched_spin [watched]"));
    let share = line.and_then(|line| line.trim().split('%').next()?.parse::<f64>().ok());
    if share.is_some_and(|share| share > 50.0) { Ok(()) } else { Err(report.into()) }
}

fn map_is_written() -> Result<(), Failed> {
    let object = object(&[]);
    let mut modload = Command::new(MODLOAD);
    modload.args(["--perf-map", "--trace", "--call", "watched_outer=5"]).arg(object);
    let modload = modload.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let path = PathBuf::from(format!("/tmp/perf-{}.map", modload.id()));
    let output = modload.wait_with_output()?;
    in_order(&said(&output), &["watched_outer(5) = 14"])?;
    let map = fs::read_to_string(&path)?;
    fs::remove_file(&path)?;
    let mut names = Vec::new();
    for line in map.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [start, size, name, module] = words[..] else { return Err(map.into()) };
        let (start, size) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(size, 16)?);
        if size == 0 || start == 0 || module != "[watched]" {
            return Err(map.into());
        }
        names.push(name.to_owned());
    }
    names.sort();
    let all = ["watched_init_result", "watched_inner", "watched_outer", "watched_spin", "watched_start"];
    let is_init = |name: &&String| ["init_module", "watched_start"].contains(&name.as_str());
    // One of the two names of init.
    if names.iter().filter(is_init).count() != 1 {
        return Err(map.into());
    }
    let others: Vec<_> = names.iter().filter(|name| !is_init(name)).collect();
    if others == all[..4].iter().collect::<Vec<_>>() { Ok(()) } else { Err(map.into()) }
}
