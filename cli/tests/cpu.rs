//! `modload --cpu`: one object adapted to several processors, and run if this machine supports it.

use std::process::{Command, Output};

use modload_fixtures::{Compiler, Fixture};

fn modload(features: &str, calls: &[&str]) -> Output {
    let object = Fixture::new("alternatives").object(Compiler::Cc, &["-fPIC"]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
    command.args(["--cpu", features]).args(calls.iter().map(|call| format!("--call={call}"))).arg(object);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn one_object_three_processors() {
    let calls = ["alt_present", "alt_not_present", "alt_nothing", "alt_call"];
    for (features, expected) in [
        ("", "alt_present() = 1\nalt_not_present() = 2\nalt_nothing() = 2\nalt_call() = 1\n"),
        ("FPU", "alt_present() = 2\nalt_not_present() = 1\nalt_nothing() = 7\nalt_call() = 42\n"),
        ("fpu xmm2", "alt_present() = 2\nalt_not_present() = 1\nalt_nothing() = 7\nalt_call() = 42\n"),
    ] {
        let output = modload(features, &calls);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), expected, "{features:?}");
    }
}

#[test]
fn what_this_machine_cannot_run_is_refused() {
    let output = modload("FPU,IA64", &["alt_present"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    assert_eq!(text(&output.stderr), "modload: this machine does not have IA64\n");
    let output = modload("FPU,SMAP", &["alt_present"]);
    let why =
        "modload: this machine does not have SMAP (no process has it: stac and clac fault outside of the kernel)\n";
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), why));
    let output = modload("FPU,sse9", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("there is no feature \"sse9\""), "{}", text(&output.stderr));
}
