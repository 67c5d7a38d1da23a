//! The patches of docs/live-patching.md, run by the commands in that document.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output};

use modload_fixtures::{Compiler, workspace_root};

/// Returns the code blocks of the document in one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let parts = text.split("\n```");
    let of = parts.filter_map(|part| part.strip_prefix(&format!("{language}\n")));
    of.map(|block| format!("{block}\n")).collect()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn the_document_says_what_happens() {
    let Some(gcc) = Compiler::Gcc.find() else {
        writeln!(std::io::stderr().lock(), "SKIPPED the_document_says_what_happens: there is no gcc").unwrap();
        return;
    };
    let root = workspace_root();
    let document = fs::read_to_string(root.join("docs/live-patching.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, block) in ["target.c", "fix.c", "deeper.c"].iter().zip(blocks(&document, "c")) {
        fs::write(folder.path().join(name), block).unwrap();
    }
    let commands = blocks(&document, "sh").concat();
    let mut called = 0;
    for line in commands.lines() {
        let (words, comment) = line.split_once('#').unwrap_or((line, ""));
        let words: Vec<&str> = words.split_whitespace().collect();
        if words[0] == "gcc" {
            let mut cc = gcc.command();
            let sdk = root.join("sdk/include").display().to_string();
            cc.args(words[1..].iter().map(|word| if *word == "sdk/include" { sdk.as_str() } else { *word }));
            run(cc.current_dir(folder.path()));
            continue;
        }
        let program = match words[0] {
            "modload" => env!("CARGO_BIN_EXE_modload"),
            "modhost" => env!("CARGO_BIN_EXE_modhost"),
            other => panic!("{other}: what is that?"),
        };
        let output = run(Command::new(program).args(&words[1..]).current_dir(folder.path()));
        let text = String::from_utf8_lossy(&output.stdout);
        if words[0] == "modhost" {
            assert_eq!(text.lines().next(), Some(comment.trim()), "{line}");
            continue;
        }
        let expected = if words.len() == 4 { "answer(2) = 5\n" } else { "answer(2) = 42\n" };
        assert_eq!(text, expected, "{line}");
        assert!(comment.contains(expected.trim_end()) || comment.contains("the same"), "{line}");
        called += 1;
    }
    assert_eq!(called, 5);
}
