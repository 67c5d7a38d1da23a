//! `cargo xtask COMMAND [OPTION=VALUE]...`: what is done with this tree beyond cargo's own commands. A table of commands.

#![forbid(unsafe_code)]

mod fuzz;
mod kernel;
mod mutants;
mod odd;
mod oracle;
mod options;
mod pages;
mod poke;
mod process;
mod seeds;

use std::error::Error;
use std::process::ExitCode;

use options::Options;

/// What goes wrong is read by people only.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A command.
struct Command {
    name: &'static str,
    /// Options and their defaults.
    options: &'static [(&'static str, &'static str)],
    help: &'static str,
    run: fn(&Options) -> Result<()>,
}

const ORACLE: &[(&str, &str)] =
    &[("boot", "max"), ("modules", "300"), ("out", ""), ("megabytes", "4096"), ("seconds", "1200"), ("again", "no")];

const COMMANDS: &[Command] = &[
    Command {
        name: "kernel",
        options: &[],
        help: "fetch and unpack Debian's kernel 6.1 once; print its folder, for MODLOAD_KERNEL",
        run: kernel::fetch,
    },
    Command { name: "inspect-kernel", options: &[], help: "inspect all its modules", run: kernel::inspect },
    Command {
        name: "mutants",
        options: &[("count", "1000000"), ("seed", "1"), ("seconds", "0")],
        help: "COUNT mutants with SEED, then with the seeds after it until SECONDS are over",
        run: mutants::run_test,
    },
    Command {
        name: "odd",
        options: &[("count", "100000"), ("seed", "1")],
        help: "make COUNT objects that are valid and odd, from set SEED on; load and call them, link them with GNU ld into a\n      \
               program, and compare what both compute",
        run: odd::run_test,
    },
    Command {
        name: "fuzz",
        options: &[("target", "all"), ("seconds", "60")],
        help: "build the fuzz targets, run each for SECONDS; what they find is in target/fuzz",
        run: fuzz::run,
    },
    Command {
        name: "oracle",
        options: ORACLE,
        help: "boot Debian's kernel in QEMU, load MODULES (a number, all, or names with commas between them), write down\n      \
               what became of them in OUT (target/oracle/BOOT), and check it; again=yes boots even if nothing has changed",
        run: oracle::run,
    },
    Command {
        name: "oracle-compare",
        options: &[("boot", "max"), ("out", ""), ("with", "image")],
        help: "compare what oracle wrote with what modhost makes, or, with=file, with the files as they are",
        run: oracle::compare,
    },
    Command {
        name: "oracle-klp",
        options: &[("out", ""), ("megabytes", "1024"), ("seconds", "900")],
        help: "boot it once more, have it go through the scenes of tests/klp with its own live patching, and compare its log\n      \
               with the snapshots of ours; the headers of its package are installed if they are missing",
        run: oracle::live_patching,
    },
    Command {
        name: "poke",
        options: &[("seconds", "3600"), ("way", "traps")],
        help: "poke 10,000 sites under fire until SECONDS are over, on new sites each minute; way=held: by rendezvous",
        run: poke::under_fire,
    },
    Command {
        name: "man",
        options: &[("out", "target/man")],
        help: "write a man page for each command and subcommand into the folder OUT",
        run: pages::man,
    },
    Command {
        name: "completions",
        options: &[("out", "target/completions")],
        help: "write completions of the commands for bash, zsh and fish into the folder OUT",
        run: pages::completions,
    },
    Command {
        name: "oracle-ld",
        options: &[("boot", "max"), ("out", ""), ("modules", "200")],
        help: "compare so many of its modules, before anything is rewritten, with what GNU ld makes of them",
        run: oracle::link,
    },
];

fn run(arguments: &[String]) -> Result<()> {
    let (name, rest) = arguments.split_first().ok_or_else(help)?;
    let command = COMMANDS.iter().find(|command| command.name == name).ok_or_else(help)?;
    (command.run)(&Options::parse(command.options, rest)?)
}

/// The table, for people.
fn help() -> String {
    let mut text = String::from("cargo xtask COMMAND [OPTION=VALUE]...");
    for Command { name, options, help, .. } in COMMANDS {
        let options: String = options.iter().map(|(name, default)| format!(" {name}={default}")).collect();
        text.push_str(&format!("\n  {name}{options}\n      {help}"));
    }
    text
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
