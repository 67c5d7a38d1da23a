//! `modhost trace` and `modload --trace-functions`: their output, and that it is complete in every kind of ending.

mod child;
mod waiting;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use modload_fixtures::{Compiler, Fixture};
use serde_json::Value;
use tempfile::TempDir;

use child::Guard;
use waiting::until;

fn traced() -> String {
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5"];
    Fixture::new("traced").object(Compiler::Cc, &flags).unwrap().display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the exit code of a child, and its standard error output.
fn ended(child: Guard) -> (Option<i32>, String) {
    let (status, said) = child.ended();
    (status.code(), said)
}

/// A host in a process of its own, with the module loaded.
struct Served {
    server: Guard,
    dir: TempDir,
}

impl Served {
    fn new() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_modhost"));
        command.arg("serve").arg("--socket").arg(dir.path().join("host.sock")).arg(traced());
        let mut server = start(&mut command);
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening"), "{line}");
        Served { server, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("MODLOAD_HOST", self.path("host.sock")).current_dir(self.dir.path());
        command
    }

    fn modhost(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_modhost"), arguments).output().unwrap()
    }

    /// Starts `modhost trace --out FILE`, and waits until the trace has begun.
    fn trace(&self, arguments: &[&str], file: &str) -> Guard {
        let _ = fs::remove_file(self.path(file));
        let all = [&["trace", "--out", file], arguments].concat();
        let tracing = start(&mut self.command(env!("CARGO_BIN_EXE_modhost"), &all));
        // A summary has no first line to wait for.
        until("it begins", || fs::read(self.path(file)).is_ok_and(|bytes| !bytes.is_empty()));
        tracing
    }

    fn call(&self, call: &str) {
        let output = self.command(env!("CARGO_BIN_EXE_modload"), &["--call", call]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }
}

fn start(command: &mut Command) -> Guard {
    Guard(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Returns lines without times, threads and addresses.
fn stable(trace: &str) -> Vec<String> {
    let lines = trace.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &str| match line.split_once(": ").or_else(|| line.split_once("|  ")) {
        Some((_, what)) if what.contains("<-0x") => what.split_once("0x").unwrap().0.to_owned(),
        // Offsets differ between compilers.
        Some((_, what)) => what.split('+').next().unwrap().to_owned(),
        None => String::new(),
    };
    lines.map(line).filter(|line| !line.is_empty()).collect()
}

#[test]
fn calls_stream_as_they_come_and_ctrl_c_ends_them() {
    let served = Served::new();
    let mut tracing =
        start(&mut served.command(env!("CARGO_BIN_EXE_modhost"), &["trace", "-p", "traced_outer", "-p", "*:*_leaf"]));
    let mut lines = BufReader::new(tracing.0.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(line(), "# tracer: function\n");
    let header = std::iter::repeat_with(&mut line).take_while(|line| !line.contains("| |")).count();
    assert!(header < 10);
    served.call("traced_outer=2");
    // The lines arrive while the trace is running.
    let live: String = (0..3).map(|_| line()).collect();
    let expected =
        ["traced_outer [traced] <-", "traced_leaf [traced] <-traced_outer", "traced_leaf [traced] <-traced_outer"];
    assert_eq!(stable(&live), expected, "{live}");
    assert!(live.lines().all(|line| line.trim_start().starts_with("modload-session-")), "{live}");
    tracing.signal("INT");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!((ended(tracing), rest.as_str()), ((Some(0), String::new()), ""));
    // The trace has ended completely: another one can begin.
    assert_eq!(served.modhost(&["trace", "--duration", "1"]).status.code(), Some(0));
}

#[test]
fn the_last_batch_is_fetched_and_files_are_whole() {
    let served = Served::new();
    for signal in ["INT", "TERM"] {
        let tracing = served.trace(&["--graph"], "graph");
        served.call("traced_outer=2");
        tracing.signal(signal);
        assert_eq!(ended(tracing), (Some(0), String::new()));
        let expected = [
            "  traced_outer [traced]() {",
            "    traced_leaf [traced]();",
            "    traced_leaf [traced]();",
            "  } /* traced_outer [traced] */",
        ];
        let trace = served.read("graph");
        let lines: Vec<String> = trace.lines().filter_map(|line| Some(line.split_once('|')?.1.to_owned())).collect();
        assert_eq!(lines[1..], expected, "{trace}");
        assert!(trace.starts_with("# tracer: function_graph\n") && trace.contains("  => modload-session-"), "{trace}");
    }

    let tracing = served.trace(&["--graph", "--format", "chrome"], "chrome");
    served.call("traced_fib=5");
    tracing.signal("INT");
    assert_eq!(ended(tracing), (Some(0), String::new()));
    let trace: Value = serde_json::from_str(&served.read("chrome")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let count = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count();
    assert_eq!((count("B"), count("E"), count("M")), (15, 15, 2));
    let process = events.iter().find(|event| event["name"] == "process_name").unwrap();
    assert_eq!((&process["args"]["name"], &process["pid"]), (&"modhost".into(), &served.server.0.id().into()));
}

#[test]
fn a_host_that_goes_away_leaves_a_whole_file() {
    let served = Served::new();
    let tracing = served.trace(&["--graph", "--format", "chrome"], "chrome");
    served.call("traced_fib=5");
    until("the calls come", || served.read("chrome").contains("traced_fib"));
    served.server.signal("KILL");
    let (status, said) = ended(tracing);
    assert_eq!(status, Some(1));
    assert!(said.contains("the host went away"), "{said}");
    let trace: Value = serde_json::from_str(&served.read("chrome")).unwrap();
    assert_eq!(trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "E").count(), 15);

    // A server that is told to stop ends the trace in order.
    let served = Served::new();
    let tracing = served.trace(&[], "calls");
    served.call("traced_leaf=1");
    served.server.signal("TERM");
    assert_eq!(ended(tracing), (Some(0), String::new()));
    assert_eq!(stable(&served.read("calls")), ["traced_leaf [traced] <-"]);
}

#[test]
fn tables_add_up() {
    let served = Served::new();
    let out = served.path("table");
    // Ended by a signal: on a busy machine a time might be over before the calls.
    let arguments = ["trace", "--graph", "--format", "json", "--out", out.to_str().unwrap()];
    let tracing = start(&mut served.command(env!("CARGO_BIN_EXE_modhost"), &arguments));
    // The file exists once the trace has been requested. The trace is running once another is refused.
    until("it asks", || out.exists());
    let other = ["trace", "--duration", "1"];
    until("it begins", || served.modhost(&other).status.code() == Some(1));
    served.call("traced_outer=1000");
    served.call("traced_fib=10");
    tracing.signal("INT");
    assert_eq!(ended(tracing), (Some(0), String::new()));
    let table: Value = serde_json::from_str(&served.read("table")).unwrap();
    let row = |name: &str| table["functions"].as_array().unwrap().iter().find(|row| row["function"] == name).unwrap();
    let number = |name: &str, key: &str| row(name)[key].as_u64().unwrap();
    assert_eq!(["traced_outer", "traced_leaf", "traced_fib"].map(|name| number(name, "calls")), [1, 1000, 177]);
    // The total time of a function is its own time plus that of the functions it called.
    let outer = number("traced_outer", "self") + number("traced_leaf", "total");
    assert_eq!(number("traced_outer", "total"), outer);
    // A recursive function has only its own time.
    assert_eq!(number("traced_fib", "total"), number("traced_fib", "self"));
    assert!(number("traced_leaf", "p50") <= number("traced_leaf", "p99"));
    assert_eq!(table["missed"]["dropped"], 0);
}

#[test]
fn what_is_missing_is_told() {
    let served = Served::new();
    let tracing = served.trace(&["--buffer", "4096", "--graph"], "graph");
    served.call("traced_outer=100000");
    tracing.signal("INT");
    let (status, said) = ended(tracing);
    assert_eq!(status, Some(0));
    let trace = served.read("graph");
    let leaves = trace.matches("traced_leaf [traced]();").count();
    // Every call is printed or counted.
    let counted: usize = said.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(said.contains("for want of room in a thread's buffer"), "{said}");
    let outer = usize::from(trace.contains("} /* traced_outer [traced] */"));
    assert!([100_000, 100_001].contains(&(leaves + counted)), "{leaves} and {said}, outer {outer}");
    assert!(trace.contains("# LOST "), "the place is marked");
}

#[test]
fn a_reader_that_goes_away_ends_the_trace() {
    let served = Served::new();
    let line = format!("'{}' trace -p 'traced:*' | tee seen | head -n 8", env!("CARGO_BIN_EXE_modhost"));
    let mut piped = start(&mut served.command("sh", &["-c", &line]));
    until("it begins", || fs::read(served.path("seen")).is_ok_and(|bytes| !bytes.is_empty()));
    until("head has what it wants", || {
        served.call("traced_outer=10");
        piped.0.try_wait().unwrap().is_some()
    });
    let (_, said) = ended(piped);
    assert_eq!(said, "", "nobody wants to read about it");
    until("the trace has ended", || served.modhost(&["trace", "--duration", "1"]).status.code() == Some(0));
}

#[test]
fn what_can_be_traced_is_listed() {
    let served = Served::new();
    let listed = |arguments: &[&str]| {
        let output = served.modhost(&[&["trace", "--list"], arguments].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
        text(&output.stdout)
    };
    let lines = |arguments: &[&str]| {
        let mut lines: Vec<String> = listed(arguments).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&[]), ["traced_fib [traced]", "traced_leaf [traced]", "traced_outer [traced]"]);
    assert_eq!(lines(&["-p", "traced:*", "-p", "!*_fib"]), ["traced_leaf [traced]", "traced_outer [traced]"]);
    assert_eq!(lines(&["-p", "greet:*"]), [""; 0]);
    let json: Value = serde_json::from_str(&listed(&["-p", "*fib", "--format", "json"])).unwrap();
    assert_eq!(json, serde_json::json!([{ "module": "traced", "name": "traced_fib" }]));
}

#[test]
fn nobody_is_traced_is_said() {
    let served = Served::new();
    let output = served.modhost(&["trace", "-p", "no_such_function", "--duration", "1"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stderr).contains("nothing that can be traced has such a name yet"),
        "{}",
        text(&output.stderr)
    );
    let other = served.modhost(&["trace", "--buffer", "1", "--duration", "1"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("4096"), "{}", text(&other.stderr));
    let unwritable = served.modhost(&["trace", "--out", "no/such/folder", "--duration", "1"]);
    assert_eq!(unwritable.status.code(), Some(1));
    assert!(text(&unwritable.stderr).contains("no/such/folder: "), "{}", text(&unwritable.stderr));
}

fn modload(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modload")).args(arguments).env_remove("MODLOAD_HOST").output().unwrap()
}

#[test]
fn an_embedded_host_is_traced_from_before_the_first_load() {
    let output =
        modload(&["--trace-functions", "traced:*", "--call", "traced_outer=2", "--call", "traced_leaf=1", &traced()]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let printed = text(&output.stdout);
    let (calls, trace) = printed.split_once("# tracer: function\n").unwrap();
    assert_eq!(calls, "traced_outer(2) = 3\ntraced_leaf(1) = 2\n");
    let leaf = "traced_leaf [traced] <-traced_outer";
    assert_eq!(stable(trace), ["traced_outer [traced] <-", leaf, leaf, "traced_leaf [traced] <-"], "{trace}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chrome");
    let out = ["--trace-format", "chrome", "--trace-out", file.to_str().unwrap()];
    let traced = traced();
    let rest =
        ["--trace-functions", "!*fib", "--trace-graph", "--call", "traced_outer=2", "--call", "traced_fib=9", &traced];
    let output = modload(&[&["--format", "json"], &out[..], &rest].concat());
    assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(0), 2));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let names: Vec<&str> =
        events.iter().filter(|event| event["ph"] == "B").map(|event| event["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["traced_outer", "traced_leaf", "traced_leaf"]);

    // In JSON format the trace is one more line.
    let output = modload(&["--format", "json", "--trace-functions", "*", "--call", "traced_fib=9", &traced]);
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["functions"][0]["calls"]), (2, &109.into()));
}

#[test]
fn a_long_call_is_drained_while_it_runs() {
    // Far more calls than a buffer holds, drained many times.
    let calls = 3_000_000;
    let call = format!("traced_outer={calls}");
    let output = modload(&[
        "--format",
        "json",
        "--trace-functions",
        "traced_leaf",
        "--trace-buffer",
        "268435456",
        "--call",
        &call,
        &traced(),
    ]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let table: Value = serde_json::from_str(text(&output.stdout).lines().nth(1).unwrap()).unwrap();
    assert_eq!(table["functions"][0]["calls"], calls);
}

#[test]
fn nonsense_is_wrong_usage() {
    let modhost = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_modhost")).args(arguments).output().unwrap();
    let socket = Path::new("./no.sock").display().to_string();
    for (program, arguments, says) in [
        ("modhost", &["trace", "-p", "a["][..], "is no pattern"),
        ("modhost", &["trace", "-p", ""], "is no pattern"),
        ("modhost", &["trace", "-p", "greet:"], "is no pattern"),
        ("modhost", &["trace", "--duration", "0"], "0 is not in 1.."),
        ("modhost", &["trace", "--duration", "soon"], "invalid digit"),
        ("modhost", &["trace", "--format", "graph"], "only --graph has that recorded"),
        ("modhost", &["trace", "--format", "svg"], "possible values"),
        ("modhost", &["trace", "--list", "--graph"], "cannot be used with"),
        ("modhost", &["trace", "--list", "--format", "chrome"], "--list is told as text"),
        ("modhost", &["trace", "extra"], "unexpected argument"),
        ("modload", &["--trace-graph", "a.o"], "--trace-functions"),
        ("modload", &["--trace-out", "f", "a.o"], "--trace-functions"),
        ("modload", &["--trace-functions", "a[", "a.o"], "is no pattern"),
        ("modload", &["--trace-functions", "*", "--trace-format", "graph", "a.o"], "only --trace-graph"),
        (
            "modload",
            &["--format", "json", "--trace-functions", "*", "--trace-format", "summary", "a.o"],
            "--trace-out FILE",
        ),
        ("modload", &["--demo", "--trace-functions", "*"], "cannot be used with"),
        ("modload", &["--host", &socket, "--trace-functions", "*", "a.o"], "modhost trace"),
    ] {
        let output = if program == "modhost" { modhost(arguments) } else { modload(arguments) };
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}
