//! The behaviour of the commands on a terminal, which the test reads.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;

/// The output of a command: on the terminal, and on the other stream.
struct Written {
    terminal: String,
    piped: String,
}

/// Which stream of a command is the terminal. The other one is a pipe.
#[derive(Clone, Copy)]
enum Terminal {
    Output,
    Errors,
}

/// Runs a command on a terminal of 100 columns.
fn watched(mut command: Command, terminal: Terminal) -> Written {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    tcsetwinsize(&theirs, Winsize { ws_row: 25, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    match terminal {
        Terminal::Output => command.stdout(theirs).stderr(Stdio::piped()),
        Terminal::Errors => command.stderr(theirs).stdout(Stdio::piped()),
    };
    let reading = std::thread::spawn(move || until_hung_up(ours));
    let mut child = command.spawn().unwrap();
    // Closes the command's copy of the terminal's other end.
    drop(command);
    let mut piped = String::new();
    match terminal {
        Terminal::Output => child.stderr.take().unwrap().read_to_string(&mut piped).unwrap(),
        Terminal::Errors => child.stdout.take().unwrap().read_to_string(&mut piped).unwrap(),
    };
    child.wait().unwrap();
    Written { terminal: reading.join().unwrap(), piped }
}

/// Reads a terminal, which ends with an error once its other end is closed.
fn until_hung_up(terminal: OwnedFd) -> String {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    let mut terminal = fs::File::from(terminal);
    while let Ok(count @ 1..) = terminal.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Returns a folder of modules that do nothing: plain_0.o and so on.
fn modules(count: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = "int nothing(void) { return 0; }";
    let object = object_from_text("nothing", Language::C, source, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    for number in 0..count {
        fs::copy(&object, dir.path().join(format!("plain_{number}.o"))).unwrap();
    }
    dir
}

fn modload(options: &[&str], folder: &Path, count: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
    command.args(options).current_dir(folder).env("TERM", "xterm");
    // If CI is set, a terminal counts as coloured regardless of TERM.
    for variable in ["MODLOAD_HOST", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(variable);
    }
    let by_name = options.contains(&"--deps");
    for number in 0..count {
        if number != 0 {
            command.arg("--");
        }
        command.arg(format!("plain_{number}{}", if by_name { "" } else { ".o" }));
    }
    command
}

#[test]
fn the_loading_of_many_modules_is_watched() {
    let dir = modules(40);
    let watched = |options: &[&str], count| watched(modload(options, dir.path(), count), Terminal::Errors);
    for options in [&["--call", "nothing"][..], &["--call", "nothing", "--deps", "."]] {
        let many = watched(options, 40);
        assert!(many.terminal.contains("/40 ") && many.terminal.contains("plain_"), "{:?}", many.terminal);
        // The bar is erased at the end: the last line is empty.
        let last = many.terminal.rsplit("\u{1b}[2K").next().unwrap();
        assert_eq!(last.trim_matches(['\r', '\n']), "", "{:?}", many.terminal);
        assert_eq!(many.piped, "nothing() = 0\n");
    }
    for (options, count) in [(&[][..], 8), (&["--trace"], 40), (&["--format", "json"], 40)] {
        assert_eq!(watched(options, count).terminal, "", "{options:?}");
    }
    // Without a terminal no bar is drawn.
    let output = modload(&[], dir.path(), 40).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    // The bar has no colours.
    let mut plain = modload(&[], dir.path(), 40);
    plain.env("NO_COLOR", "1");
    assert!(self::watched(plain, Terminal::Errors).terminal.contains("/40 "));
    assert!(!coloured(&watched(&[], 40).terminal));
}

#[test]
fn a_refusal_stands_alone_when_the_bar_is_gone() {
    let dir = modules(20);
    fs::write(dir.path().join("plain_15.o"), "no object").unwrap();
    let refused = watched(modload(&[], dir.path(), 20), Terminal::Errors).terminal;
    let last = refused.rsplit("\u{1b}[2K").next().unwrap();
    assert!(last.trim_start().starts_with("modload: plain_15.o: "), "{refused:?}");
}

#[test]
fn a_host_that_begins_with_many_and_one_that_is_sent_many_are_watched() {
    let dir = modules(20);
    let files: Vec<String> = (0..20).map(|number| format!("plain_{number}.o")).collect();
    let modhost = |files: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modhost"));
        command.args(["serve", "--socket", "host.sock"]).args(files.join(" -- ").split_whitespace());
        command.current_dir(dir.path()).env("TERM", "xterm");
        command
    };
    // The command fails because of its last module.
    let begun = watched(modhost(&[&files[..], &["nowhere.o".into()]].concat()), Terminal::Errors).terminal;
    assert!(begun.contains("/21 ") && begun.contains("modhost: nowhere.o: No such file"), "{begun:?}");

    let mut server = modhost(&[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; "listening on host.sock\n".len()];
    let listening = server.stdout.take().unwrap().read_exact(&mut ready);
    let sent = watched(modload(&["--host", "host.sock"], dir.path(), 20), Terminal::Errors).terminal;
    server.kill().unwrap();
    server.wait().unwrap();
    listening.unwrap();
    assert!(sent.contains("/20 ") && !sent.contains("modload: "), "{sent:?}");
}

/// Returns whether text contains colours for terminals.
fn coloured(text: &str) -> bool {
    text.split("\u{1b}[")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[test]
fn colours_are_for_terminals_and_can_be_turned_off() {
    let dir = modules(0);
    let greet = Fixture::new("greet").object(Compiler::Cc, &["-O2", "-fPIC", "-fvisibility=hidden"]).unwrap();
    let greet = greet.display().to_string();
    // Texts with colours: timelines and headings, help, and clap's error messages.
    let lines: [(&[&str], Terminal); 4] = [
        (&["--trace", &greet], Terminal::Output),
        (&["--demo"], Terminal::Output),
        (&["--help"], Terminal::Output),
        (&["--nonsense"], Terminal::Errors),
    ];
    for (line, terminal) in lines {
        for (variable, value, colours) in [
            ("NONE", "", true),
            ("NO_COLOR", "1", false),
            ("NO_COLOR", "", true),
            ("CLICOLOR", "0", false),
            ("CLICOLOR_FORCE", "1", true),
            ("TERM", "dumb", false),
        ] {
            let mut command = modload(line, dir.path(), 0);
            command.env(variable, value);
            let Written { terminal, piped } = watched(command, terminal);
            assert_eq!(coloured(&terminal), colours, "{line:?} {variable}={value}: {terminal:?}");
            assert!(!coloured(&piped) && !terminal.is_empty(), "{line:?} {variable}={value}");
        }
        // A pipe gets colours only if forced.
        let output = modload(line, dir.path(), 0).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!coloured(&text), "{line:?}");
        let forced = modload(line, dir.path(), 0).env("CLICOLOR_FORCE", "1").output().unwrap();
        assert!(coloured(&String::from_utf8([forced.stdout, forced.stderr].concat()).unwrap()), "{line:?}");
    }
}
