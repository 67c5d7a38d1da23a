//! `--library`: modules of C++ in a program that has no C++ library.

use std::path::PathBuf;
use std::process::{Command, Output};

use modload_fixtures::{Compiler, Language, object_from_text};

/// Strings of the library, an exception that stays inside, output, and a thread that the module's end joins.
const MODULE: &str = r#"
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
extern "C" {
int length(int count) { std::string text(count, 'x'); return static_cast<int>((text + "y").size()); }
int caught(int count) {
    try {
        return std::string(static_cast<std::size_t>(count), 'x').at(1000);
    } catch (const std::out_of_range &) {
        return -1;
    }
}
int say(int number) { std::cout << "the module says " << number << std::endl; return number; }
int joined(int number) {
    int result = 0;
    std::thread thread([&] { result = number + 1; });
    thread.join();
    return result;
}
}
"#;

fn module() -> PathBuf {
    object_from_text("whole", Language::Cxx, MODULE, Compiler::Cc, &["-O2", "-fPIC"]).unwrap()
}

fn modload(options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modload")).args(options).arg(module()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_module_of_cxx_is_loaded_with_its_library() {
    if Compiler::Cc.find_for(Language::Cxx).is_none() {
        eprintln!("SKIPPED: there is no compiler of C++");
        return;
    }
    let calls = ["--call=length=40", "--call=caught=3", "--call=say=7", "--call=joined=41"];
    let output = modload(&[&["--library", "libstdc++.so.6"][..], &calls].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    for line in ["length(40) = 41", "caught(3) = -1", "the module says 7", "joined(41) = 42"] {
        assert!(said.lines().any(|said| said == line), "{line:?} in {said}");
    }
    // Without the library the module is refused.
    let refused = modload(&calls);
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(why.contains("_ZNSt7__cxx1112basic_string"), "{why}");
    // What is linked by version is found in libraries, too, and only the version that is there.
    let user = |version: &str| {
        let text =
            format!(".symver wanted, _ZSt17__throw_bad_allocv@{version}\n.data\n.globl used\nused: .quad wanted\n");
        object_from_text("versioned", Language::Assembler, &text, Compiler::Cc, &[]).unwrap()
    };
    for (version, loads) in [("GLIBCXX_3.4", true), ("GLIBCXX_9.9", false)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
        let output = command.args(["--library", "libstdc++.so.6"]).arg(user(version)).output().unwrap();
        assert_eq!(output.status.success(), loads, "{version}: {}", text(&output.stderr));
    }
}

#[test]
fn a_library_that_cannot_be_opened_is_named_with_the_reason() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_modload")).args(["--library", "libnone.so.1", "none.o"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let why = text(&output.stderr);
    assert!(why.contains("the library \"libnone.so.1\" cannot be opened") && why.contains("No such file"), "{why}");
    let demo = Command::new(env!("CARGO_BIN_EXE_modload")).args(["--demo", "--library", "libm.so.6"]).output().unwrap();
    assert_eq!(demo.status.code(), Some(2));
    let served = Command::new(env!("CARGO_BIN_EXE_modload"))
        .args(["--host", "none.sock", "--library", "libm.so.6", "none.o"])
        .output()
        .unwrap();
    assert_eq!(served.status.code(), Some(2), "{}", text(&served.stderr));
}
