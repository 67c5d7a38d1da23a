//! `cargo xtask COMMAND [OPTION=VALUE]...`: tasks for this source tree beyond cargo's own commands. A table of
//! commands.

#![forbid(unsafe_code)]

mod everyday;
mod fuzz;
mod kernel;
mod mutants;
mod odd;
mod oracle;
mod options;
mod pages;
mod poke;
mod process;
mod prose;
mod seeds;
mod suite;

use std::error::Error;
use std::process::ExitCode;

use options::Options;

/// The error type holds only a text, because only people read errors here.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A command.
struct XtaskCommand {
    name: &'static str,
    /// The options and their defaults.
    options: &'static [(&'static str, &'static str)],
    help: &'static str,
    run: fn(&Options) -> Result<()>,
}

const ORACLE: &[(&str, &str)] =
    &[("boot", "max"), ("modules", "300"), ("out", ""), ("megabytes", "4096"), ("seconds", "1200"), ("again", "no")];

const COMMANDS: &[XtaskCommand] = &[
    XtaskCommand {
        name: "quick",
        options: &[],
        help: "the checks of every day: the format, and all tests that take less than some seconds",
        run: everyday::quick,
    },
    XtaskCommand {
        name: "test",
        options: &[("lanes", "2")],
        help: "all tests of the workspace, LANES test programs at a time",
        run: suite::test,
    },
    XtaskCommand { name: "ci", options: &[], help: "all that CI runs: .ci/run", run: everyday::ci },
    XtaskCommand {
        name: "kernel",
        options: &[],
        help: "fetch and unpack Debian's kernel 6.1, only once; print its folder, for MODLOAD_KERNEL",
        run: kernel::fetch,
    },
    XtaskCommand {
        name: "inspect-kernel",
        options: &[],
        help: "inspect all modules of that kernel",
        run: kernel::inspect,
    },
    XtaskCommand {
        name: "mutants",
        options: &[("count", "1000000"), ("seed", "1"), ("seconds", "0")],
        help: "load COUNT mutants with SEED, then with the following seeds until SECONDS are over",
        run: mutants::run_test,
    },
    XtaskCommand {
        name: "odd",
        options: &[("count", "100000"), ("seed", "1")],
        help: "generate COUNT valid but unusual objects, from set SEED on; load and call them, link them with GNU ld into a\n      \
               program, and compare the results",
        run: odd::run_test,
    },
    XtaskCommand {
        name: "prose",
        options: &[("seed", "1"), ("count", "20")],
        help: "print COUNT doc comments, drawn with SEED, and counts of the words and the type names of the tree",
        run: prose::print,
    },
    XtaskCommand {
        name: "fuzz",
        options: &[("target", "all"), ("seconds", "60")],
        help: "build the fuzz targets and run each for SECONDS; their findings are in target/fuzz",
        run: fuzz::run,
    },
    XtaskCommand {
        name: "oracle",
        options: ORACLE,
        help: "boot Debian's kernel in QEMU, load MODULES (a number, all, or names separated by commas), record the\n      \
               results in OUT (target/oracle/BOOT), and check them; again=yes boots even if nothing has changed",
        run: oracle::run,
    },
    XtaskCommand {
        name: "oracle-compare",
        options: &[("boot", "max"), ("out", ""), ("with", "image")],
        help: "compare the record of oracle with the images of modhost or, with=file, with the unchanged files",
        run: oracle::compare,
    },
    XtaskCommand {
        name: "oracle-klp",
        options: &[("out", ""), ("megabytes", "1024"), ("seconds", "900")],
        help: "boot that kernel again, run the scenes of tests/klp with Linux's own live patching, and compare its log\n      \
               with our snapshots; the kernel's header package is installed if it is missing",
        run: oracle::live_patching,
    },
    XtaskCommand {
        name: "poke",
        options: &[("seconds", "3600"), ("way", "traps")],
        help: "poke 10,000 sites that threads execute, until SECONDS are over, with new sites each minute; way=held: by rendezvous",
        run: poke::under_fire,
    },
    XtaskCommand {
        name: "man",
        options: &[("out", "target/man")],
        help: "write a man page for each command and subcommand into the folder OUT",
        run: pages::man,
    },
    XtaskCommand {
        name: "completions",
        options: &[("out", "target/completions")],
        help: "write completions of the commands for bash, zsh and fish into the folder OUT",
        run: pages::completions,
    },
    XtaskCommand {
        name: "oracle-ld",
        options: &[("boot", "max"), ("out", ""), ("modules", "200")],
        help: "compare MODULES modules of that boot, before any code is rewritten, with the output of GNU ld",
        run: oracle::link,
    },
];

fn run(arguments: &[String]) -> Result<()> {
    let (name, rest) = arguments.split_first().ok_or_else(help)?;
    let command = COMMANDS.iter().find(|command| command.name == name).ok_or_else(help)?;
    (command.run)(&Options::parse(command.options, rest)?)
}

/// Returns the table of commands as text.
fn help() -> String {
    let mut text = String::from("cargo xtask COMMAND [OPTION=VALUE]...");
    for XtaskCommand { name, options, help, .. } in COMMANDS {
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
