//! Checks docs/operating.md: runs its commands in one shell, in order, and compares their output with the document.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use modload_fixtures::{LONG, workspace_root};

/// A command of the document, with the lines that it prints.
struct Step {
    command: String,
    expected: Vec<String>,
}

fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in document.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap_or_default().lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.into(), expected: Vec::new() }),
                (None, Some(step)) => step.expected.push(line.into()),
                (None, None) => panic!("output before the first command: {line}"),
            }
        }
    }
    steps
}

/// Returns a line without the parts that depend on the compiler: sizes (`816 B`), and the blanks of the columns around
/// them.
fn stable(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut stable = String::new();
    for (at, word) in words.iter().enumerate() {
        let unit = words.get(at + 1).is_some_and(|next| next.trim_end_matches(',') == "B");
        let size = unit && word.bytes().all(|byte| byte.is_ascii_digit());
        write!(stable, "{} ", if size { "N" } else { word }).unwrap();
    }
    stable
}

/// A shell and all processes that it has started.
struct Shell {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Kills the whole process group: if the document is wrong, a host may still be running.
        let kill = format!("kill -s KILL -- -{}", self.child.id());
        let _ = Command::new("sh").args(["-c", &kill]).status();
        let _ = self.child.wait();
    }
}

const DONE: &str = "-- done --";

impl Shell {
    fn start(dir: &Path) -> Shell {
        let bin = Path::new(env!("CARGO_BIN_EXE_modhost")).parent().unwrap();
        let path = std::env::join_paths(
            [bin.to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        let mut child = Command::new("sh")
            .args(["-c", "exec 2>&1; exec sh"])
            .current_dir(dir)
            .env("PATH", path.unwrap())
            .env_remove("MODLOAD_HOST")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Shell { child, lines }
    }

    /// Returns the output of a command. For a command in the background, reads as many lines as expected.
    fn run(&mut self, step: &Step) -> Vec<String> {
        let mut input = self.child.stdin.as_ref().unwrap();
        writeln!(input, "{}\nstatus=$?; echo '{DONE}'; (exit $status)", step.command).unwrap();
        let (mut printed, mut done) = (Vec::new(), false);
        while !done || printed.len() < step.expected.len() {
            match self.lines.recv_timeout(LONG) {
                Ok(line) if line == DONE => done = true,
                Ok(line) => printed.push(line),
                Err(_) => break,
            }
        }
        printed
    }
}

#[test]
fn the_transcript_is_what_happens() {
    let document = fs::read_to_string(workspace_root().join("docs/operating.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["sdk", "fixtures", "README.md"] {
        std::os::unix::fs::symlink(workspace_root().join(name), dir.path().join(name)).unwrap();
    }
    let mut shell = Shell::start(dir.path());
    let steps = steps(&document);
    assert!(steps.len() > 15, "only {} commands", steps.len());
    for step in &steps {
        let printed = shell.run(step);
        let stable = |lines: &[String]| lines.iter().map(|line| self::stable(line)).collect::<Vec<_>>();
        assert_eq!(stable(&printed), stable(&step.expected), "$ {}\n{}", step.command, printed.join("\n"));
    }
}
