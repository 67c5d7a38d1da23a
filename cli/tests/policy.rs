//! Each rule of a policy: a module that follows the rule, and one that breaks it under off, warn and enforce.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use modload_fixtures::{Compiler, Language, object_from_text};

/// Returns an object made of assembler text.
fn object(name: &str, text: &str) -> PathBuf {
    object_from_text(name, Language::Assembler, text, Compiler::Cc, &[]).unwrap()
}

/// Returns modinfo of `key=value` strings.
fn modinfo(entries: &[&str]) -> String {
    entries.iter().map(|entry| format!(".section .modinfo,\"a\"\n.asciz \"{entry}\"\n")).collect()
}

/// Exports `thing`, optionally with a namespace and a CRC.
fn exporter(namespace: &str, crc: Option<u32>) -> String {
    let crc = crc.map_or_else(String::new, |crc| format!(".section __kcrctab,\"a\"\n.long {crc:#x}\n"));
    format!(
        ".text\n.globl thing\n.type thing,@function\nthing: mov $7,%eax\nret\n.size thing,.-thing\n\
         .section __ksymtab_strings,\"a\"\n1: .asciz \"thing\"\n2: .asciz \"{namespace}\"\n\
         .section __ksymtab,\"a\"\n.long thing - .\n.long 1b - .\n.long 2b - .\n{crc}{}",
        modinfo(&["name=exporter", "license=GPL"])
    )
}

/// Calls `thing`, with additional text.
fn user(more: &str, info: &[&str]) -> String {
    format!(".text\n.globl use\n.type use,@function\nuse: jmp thing@PLT\n.size use,.-use\n{more}{}", modinfo(info))
}

/// Returns `__versions` with an entry for `thing`.
fn versions(crc: u32) -> String {
    format!(".section __versions,\"a\"\n.quad {crc:#x}\n1: .asciz \"thing\"\n.zero 56 - (. - 1b)\n")
}

fn modload(options: &[&str], files: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
    command.args(options).arg("--trace");
    for (at, file) in files.iter().enumerate() {
        if at != 0 {
            command.arg("--");
        }
        command.arg(file);
    }
    command.output().unwrap()
}

/// Loads `files` under each check: a module that breaks the rule is refused, accepted with a warning, or accepted
/// silently.
fn broken(rule: &str, options: &[&str], files: &[&Path], says: &str) {
    for check in ["enforce", "warn", "off"] {
        let policy = format!("--policy={rule}={check}");
        let output = modload(&[options, &[&policy]].concat(), files);
        let trace = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let verdict = |verdict: &str| trace.contains(&format!("policy    {rule}: {verdict}: "));
        match check {
            "enforce" => {
                assert_eq!(output.status.code(), Some(1), "{rule}\n{trace}");
                assert!(error.contains(says) && verdict("refused"), "{rule}: {error}\n{trace}");
            }
            "warn" => {
                assert!(output.status.success(), "{rule}: {error}\n{trace}");
                assert!(verdict("warned") && trace.contains("warning   ") && trace.contains(says), "{rule}\n{trace}");
            }
            _ => {
                assert!(output.status.success(), "{rule}: {error}\n{trace}");
                assert!(!trace.contains(&format!("policy    {rule}")), "{rule}\n{trace}");
            }
        }
    }
}

fn kept(rule: &str, options: &[&str], files: &[&Path]) {
    let policy = format!("--policy={rule}=enforce");
    let output = modload(&[options, &[&policy]].concat(), files);
    let trace = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{rule}: {}\n{trace}", String::from_utf8_lossy(&output.stderr));
    assert!(trace.contains(&format!("policy    {rule}: kept\n")), "{rule}\n{trace}");
}

#[test]
fn versions_are_compared_where_the_exporter_has_one() {
    let versioned = object("versioned", &exporter("", Some(0x1234_5678)));
    let unversioned = object("unversioned", &exporter("", None));
    let right = object("right", &user(&versions(0x1234_5678), &[]));
    let wrong = object("wrong", &user(&versions(0x8765_4321), &[]));
    let without = object("without", &user("", &[]));
    kept("versions", &[], &[&versioned, &right]);
    broken(
        "versions",
        &[],
        &[&versioned, &wrong],
        "has the CRC 0x12345678, and the module was built against 0x87654321",
    );
    broken("versions", &[], &[&versioned, &without], "has the CRC 0x12345678, and the module has no CRC for it");
    assert!(modload(&[], &[&unversioned, &wrong]).status.success());
}

#[test]
fn vermagic_is_compared_where_the_host_has_one() {
    let right = object("right", &modinfo(&["vermagic=6.1 host"]));
    let wrong = object("wrong", &modinfo(&["vermagic=6.6 host"]));
    let without = object("without", &modinfo(&["license=GPL"]));
    let expected = ["--vermagic", "6.1 host"];
    kept("vermagic", &expected, &[&right]);
    broken("vermagic", &expected, &[&wrong], "its vermagic is \"6.6 host\", and the host's is \"6.1 host\"");
    broken("vermagic", &expected, &[&without], "its vermagic is none");
    assert!(modload(&[], &[&wrong]).status.success(), "nothing to compare with");
}

#[test]
fn namespaces_are_imported_by_who_uses_them() {
    let exporter = object("exporter", &exporter("INNER", None));
    let right = object("right", &user("", &["import_ns=OTHER", "import_ns=INNER"]));
    let wrong = object("wrong", &user("", &["import_ns=OTHER"]));
    kept("namespaces", &[], &[&exporter, &right]);
    broken(
        "namespaces",
        &[],
        &[&exporter, &wrong],
        "is exported into the namespace INNER, which the module does not import",
    );
}

#[test]
fn licences_can_be_demanded() {
    let right = object("right", &modinfo(&["license=Dual MIT/GPL"]));
    let wrong = object("wrong", &modinfo(&["license=Secret"]));
    let without = object("without", ".text\nnop\n");
    kept("license", &[], &[&right]);
    broken("license", &[], &[&wrong], "its licence is \"Secret\", which is not compatible with the GPL");
    broken("license", &[], &[&without], "its licence is not stated");
    assert!(modload(&[], &[&wrong]).status.success(), "off if nothing is said");
}

#[test]
fn a_blocked_module_is_not_loaded() {
    let module = object("unwanted", ".text\nnop\n");
    kept("blocklist", &["--block", "other"], &[&module]);
    broken(
        "blocklist",
        &["--block", "other", "--block", "unwanted"],
        &[&module],
        "its name is on the host's blocklist",
    );
}

#[test]
fn nonsense_is_wrong_usage() {
    for policy in ["versions", "versions=maybe", "weather=warn", "=", ""] {
        let output = modload(&["--policy", policy], &[Path::new("a.o")]);
        assert_eq!(output.status.code(), Some(2), "{policy:?}");
    }
}
