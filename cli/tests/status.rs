//! The exit status of every command: 0 done, 1 refused or failed, 2 wrong usage; also if the output cannot be written.

use std::fs::File;
use std::process::{Command, Output, Stdio};

use modload_fixtures::{Compiler, Fixture};

fn program(name: &str) -> &'static str {
    match name {
        "modload" => env!("CARGO_BIN_EXE_modload"),
        "modhost" => env!("CARGO_BIN_EXE_modhost"),
        "modunload" => env!("CARGO_BIN_EXE_modunload"),
        other => panic!("{other} is no command"),
    }
}

/// Returns a command line. GREET is a module that loads, REFUSED is one that does not.
fn command(line: &str) -> Command {
    let object = |name: &str| Fixture::new(name).object(Compiler::Cc, &["-O2", "-fPIC", "-fvisibility=hidden"]);
    let word = |word: &str| match word {
        "GREET" => object("greet").unwrap().display().to_string(),
        "REFUSED" => object("exec_stack").unwrap().display().to_string(),
        "''" => String::new(),
        word => word.to_owned(),
    };
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut command = Command::new(program(name));
    command.args(rest.split_whitespace().map(word)).env("XDG_RUNTIME_DIR", "/nowhere").env_remove("MODLOAD_HOST");
    command
}

fn run(line: &str) -> Output {
    command(line).stdin(Stdio::null()).output().unwrap()
}

/// Exit status and command lines.
const TABLE: [(i32, &[&str]); 3] = [
    (
        0,
        &[
            "modload --help",
            "modload --version",
            "modload --demo",
            "modload GREET",
            "modload --trace --call greet_count GREET times=2",
            "modload -- GREET",
            "modload --name greeter GREET",
            "modhost --help",
            "modhost help",
            "modhost help serve",
            "modhost serve --help",
            "modhost list --help",
            "modhost params --help",
            "modhost trace --help",
            "modhost patch --help",
            "modhost klp-link --help",
            "modhost explain --help",
            "modhost image --help",
            "modhost check --help",
            "modhost check GREET",
            "modhost inspect --help",
            "modhost inspect GREET",
            "modhost inspect REFUSED",
            "modhost inspect --function greet_hello GREET",
            "modunload --help",
            "modunload --version",
        ],
    ),
    (
        1,
        &[
            "modload /nowhere.o",
            "modload /",
            "modload /dev/null",
            "modload REFUSED",
            "modload GREET times=many",
            "modload --call nobody GREET",
            "modload --deps /nowhere greet",
            "modload --host /nowhere GREET",
            "modload --host / GREET",
            "modload --host /dev/null --call f",
            "modhost serve --socket /nowhere/host.sock",
            "modhost serve --socket /",
            "modhost list",
            "modhost list --host /nowhere greet",
            "modhost params greet",
            "modhost params --host /nowhere greet a=1",
            "modhost check /nowhere.o",
            "modhost check GREET REFUSED",
            "modhost check /",
            "modhost inspect /nowhere.o",
            "modhost inspect /dev/null",
            "modhost inspect --function nobody GREET",
            "modunload greet",
            "modunload --host /nowhere greet",
            "modunload --wait 18446744073709551615 greet",
        ],
    ),
    (
        2,
        &[
            "modload",
            "modload --",
            "modload ''",
            "modload --nonsense",
            "modload -x",
            "modload --format",
            "modload --format xml GREET",
            "modload --call",
            "modload --call f=x GREET",
            "modload --policy license GREET",
            "modload --host",
            "modload --host s",
            "modload --name GREET",
            "modload --name m -- GREET",
            "modload GREET -- --name",
            "modload --deps d --name m GREET",
            "modload --demo GREET",
            "modhost",
            "modhost nonsense",
            "modhost --nonsense",
            "modhost serve --",
            "modhost serve --socket ''",
            "modhost serve --nonsense",
            "modhost serve --name m",
            "modhost serve --policy nonsense=off",
            "modhost list a b",
            "modhost list --wait 1",
            "modhost params",
            "modhost check",
            "modhost check --nonsense",
            "modhost inspect",
            "modhost inspect a b",
            "modunload",
            "modunload --wait",
            "modunload --wait -1 greet",
            "modunload --wait 18446744073709551616 greet",
            "modunload --wait soon greet",
            "modunload --nonsense greet",
        ],
    ),
];

#[test]
fn every_command_ends_with_the_status_that_its_end_has() {
    let mut wrong = Vec::new();
    for (status, lines) in TABLE {
        for line in lines {
            let output = run(line);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            // A failing command prints its reason to standard error and nothing else; a succeeding one prints nothing
            // there.
            let right = match status {
                0 => stderr.is_empty(),
                1 => stderr.starts_with(&format!("{}: ", line.split(' ').next().unwrap())),
                _ => stderr.starts_with("error: ") || stderr.contains("Usage: "),
            };
            if output.status.code() != Some(status) || !right {
                wrong.push(format!("{line}: {:?}, not {status}: {stderr}", output.status));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_is_in_the_table() {
    let mut missing = Vec::new();
    for command in modload_cli::commands() {
        let subcommands =
            command.get_subcommands().map(|subcommand| format!("{} {}", command.get_name(), subcommand.get_name()));
        let helps = subcommands.chain([command.get_name().to_owned()]).map(|name| format!("{name} --help"));
        missing.extend(helps.filter(|help| !TABLE[0].1.contains(&help.as_str())));
    }
    assert!(missing.is_empty(), "not in TABLE: {missing:?}");
}

/// Commands that print something.
const PRINTS: [&str; 7] = [
    "modload --help",
    "modload --version",
    "modload --demo",
    "modload --trace GREET",
    "modhost inspect GREET",
    "modhost check GREET",
    "modhost list --help",
];

#[test]
fn output_that_nobody_reads_is_a_failure_and_no_panic() {
    for line in PRINTS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(line).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b""[..]), "{line}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command(line).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && said.contains("the output could not be written: No space left"),
            "{line}: {said}"
        );
    }
}

#[test]
fn errors_that_nobody_reads_change_no_status() {
    for (line, status) in [
        ("modload /nowhere.o", 1),
        ("modload --format json /nowhere.o", 1),
        ("modload --nonsense", 2),
        ("modload GREET bogus=1", 0),
        ("modhost list", 1),
        ("modunload greet", 1),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        for stderr in [Stdio::from(writer), full.into()] {
            assert_eq!(command(line).stderr(stderr).output().unwrap().status.code(), Some(status), "{line}");
        }
    }
}
