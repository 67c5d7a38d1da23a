//! `modhost explain` and `modload --explain`: a function before and after loading.

use std::process::{Command, Output};

use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use serde_json::Value;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

fn modhost(arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_modhost"), arguments)
}

fn object(name: &str) -> String {
    Fixture::new(name).object(Compiler::Cc, &["-O2", "-fPIC"]).unwrap().display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn both_sides_and_who_changed_them() {
    let shown = text(&modhost(&["explain", &object("alternatives"), "alt_call"]).stdout);
    let expected = "\nalt_call at .text+0x3a\n\
        \x20    0:  b8 01 00 00 00           mov $1,%eax                       | e8 01 00 00 00           call 6\n\
        \x20        alternative: for a processor with FPU; this one has\n\
        \x20    5:  c3                       ret                               | c3                       ret\n";
    assert_eq!(shown, expected);
}

#[test]
fn another_processor_has_another_text() {
    let shown = text(&modhost(&["explain", "--cpu", "XMM2", &object("alternatives"), "alt_present"]).stdout);
    assert!(shown.contains("mov $1,%eax                       | b8 01 00 00 00           mov $1,%eax"), "{shown}");
    // A site whose alternative does not apply still gets long NOPs.
    let shown = text(&modhost(&["explain", "--cpu", "", &object("alternatives"), "alt_jump_far"]).stdout);
    assert!(shown.contains("alternative: for a processor with FPU; this one has not"), "{shown}");
    let refused = modhost(&["explain", "--cpu", "IA64", &object("alternatives"), "alt_present"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn relocations_are_named_and_the_same_is_data() {
    let greet = object("greet");
    let output = modhost(&["explain", "--format", "json", &greet, "greet_hello"]);
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(explained["function"], "greet_hello");
    assert_eq!(explained["before"].as_array().unwrap().len(), explained["after"].as_array().unwrap().len());
    let changes = explained["changes"].as_array().unwrap();
    assert!(!changes.is_empty());
    for change in changes {
        assert_eq!(change["engine"], "relocation", "{change}");
        assert!(change["because"].as_str().unwrap().starts_with("R_X86_64_"), "{change}");
        assert_eq!(change["old"].as_array().unwrap().len(), change["new"].as_array().unwrap().len());
    }
    // Every differing byte belongs to a listed change.
    let bytes = |side: &str| explained[side].as_array().unwrap().clone();
    for (at, (before, after)) in (0..).zip(bytes("before").iter().zip(&bytes("after"))) {
        let written = changes.iter().any(|change| {
            let start = change["offset"].as_i64().unwrap();
            let len = i64::try_from(change["new"].as_array().unwrap().len()).unwrap();
            (start..start + len).contains(&at)
        });
        assert!(before == after || written, "byte {at}");
    }
}

#[test]
fn in_a_host_next_to_the_others() {
    let (greet, guest) = (object("greet"), object("guest"));
    let output = run(
        env!("CARGO_BIN_EXE_modload"),
        &["--explain", "guest_again", "--call", "guest_again", &greet, "times=2", "--", &guest],
    );
    let shown = text(&output.stdout);
    assert!(shown.contains("guest_again at .text"), "{shown}{}", text(&output.stderr));
    assert!(shown.contains("greet_hello-0x4") || shown.contains("greet_hello+"), "{shown}");
    assert!(shown.contains("guest_again() = "), "{shown}");
}

#[test]
fn what_is_not_there_is_said() {
    let greet = object("greet");
    for (arguments, code, why) in [
        (&["explain", &greet, "nobody"][..], 1, "the module has no function of this name"),
        (&["explain", &greet, "greet_hello", "more"], 2, "unexpected argument"),
        (&["explain", &greet], 2, "required"),
        (&["explain", "/nonexistent.o", "f"], 1, "/nonexistent.o: "),
    ] {
        let output = modhost(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(text(&output.stderr).contains(why), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// The changes of a site are found by binary search, not among all changes.
#[test]
fn a_function_with_very_many_changes_is_explained() {
    let text: String = (0..60_000).map(|_| "incl x(%rip)\n").collect();
    let text = format!(".text\n.globl f\nf:\n{text}ret\n.data\nx: .long 0\n");
    let many = object_from_text("many", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
    let shown = modhost(&["explain", &many.display().to_string(), "f"]).stdout;
    assert_eq!(self::text(&shown).matches("relocation: R_X86_64_PC32 .data-0x4").count(), 60_000);
}
