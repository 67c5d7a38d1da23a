//! `modhost inspect`: its output for known modules, and for files that are not modules.

use std::process::{Command, Output};

use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use serde_json::Value;

fn modhost(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modhost")).args(arguments).output().unwrap()
}

fn object(name: &str) -> String {
    let path = Fixture::new(name).object(Compiler::Cc, &["-O2", "-fPIC", "-fvisibility=hidden"]).unwrap();
    path.display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = modhost(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[test]
fn a_module_is_shown_for_people() {
    let shown = text(&modhost(&["inspect", &object("greet")]).stdout);
    for part in [
        "name         greet\n",
        "license      Dual MIT/GPL\n",
        "\nparameters\n",
        "  times (int): how often it says hello each time\n",
        "  who (charp): to whom\n",
        "\nexports\n",
        "  greet_hello\n",
        "  greet_count\n",
        "  greet_text\n",
        "\nneeds\n",
        "bytes of init text\n",
        "__ksymtab: 3 records\n",
        "__param: 2 records\n",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    assert!(!shown.contains("cannot load"), "{shown}");
}

#[test]
fn the_same_as_json() {
    let guest = json(&["inspect", "--format", "json", &object("guest")]);
    assert_eq!(guest["name"], "guest");
    assert_eq!(names(&guest["params"]), ["visits"]);
    assert!(names(&guest["needs"]).contains(&"greet_hello"), "{}", guest["needs"]);
    assert_eq!(guest["refused"], Value::Null);
    let exporter = json(&["inspect", "--format", "json", &object("gpl_only")]);
    let exports = exporter["exports"].as_array().unwrap();
    assert!(exports.iter().any(|export| export["gpl_only"] == true), "{exports:?}");
}

#[test]
fn what_cannot_be_loaded_can_be_looked_at() {
    for (name, why) in [
        ("exec_stack", "it asks for an executable stack"),
        ("unsupported_section", "tracepoints are not supported yet"),
    ] {
        let inspected = json(&["inspect", "--format", "json", &object(name)]);
        assert!(inspected["refused"].as_str().unwrap().contains(why), "{inspected}");
    }
}

#[test]
fn a_function_is_disassembled_with_its_relocations() {
    let guest = object("guest");
    let shown = text(&modhost(&["inspect", "--function", "guest_again", &guest]).stdout);
    assert!(shown.starts_with("guest_again at .text"), "{shown}");
    assert!(shown.contains("# R_X86_64_PLT32 greet_hello-0x4\n"), "{shown}");
    assert!(shown.contains("ret\n") || shown.contains("jmp"), "{shown}");
    let listing = json(&["inspect", "--format", "json", "--function", "guest_again", &guest]);
    let lines = listing["instructions"].as_array().unwrap();
    assert!(lines.iter().any(|line| line["relocations"][0] == "R_X86_64_PLT32 greet_hello-0x4"), "{listing}");
    let missing = modhost(&["inspect", "--function", "nobody", &guest]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).ends_with("the file has no function \"nobody\"\n"), "{}", text(&missing.stderr));
}

#[test]
fn what_is_no_module_is_refused_in_a_sentence() {
    let output = modhost(&["inspect", env!("CARGO_BIN_EXE_modhost")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("use dlopen"), "{}", text(&output.stderr));
    assert_eq!(modhost(&["inspect"]).status.code(), Some(2));
    assert_eq!(modhost(&["nonsense"]).status.code(), Some(2));
    assert!(text(&modhost(&["inspect", "--help"]).stdout).contains("modhost inspect greet.o"));
}

#[test]
fn large_files_take_no_longer_than_they_are_large() {
    let text_of = |lines: String| {
        let object = object_from_text("large", Language::Assembler, &lines, Compiler::Cc, &[]).unwrap();
        object.display().to_string()
    };
    let calls = text_of(".globl f\nf:\n.rept 50000\ncall g\n.endr\n".into());
    let shown = text(&modhost(&["inspect", "--function", "f", &calls]).stdout);
    assert_eq!(shown.matches("# R_X86_64_PLT32 g-0x4\n").count(), 50_000);
    let lines = (0..50_000).map(|at| format!(".asciz \"parmtype=p{at}:int\", \"parm=p{}:text\"\n", 49_999 - at));
    let params = json(&[
        "inspect",
        "--format",
        "json",
        &text_of(".section .modinfo,\"a\"\n".to_owned() + &lines.collect::<String>()),
    ]);
    let described = params["params"].as_array().unwrap().iter().filter(|param| param["description"] == "text").count();
    assert_eq!(described, 50_000);
}

#[test]
fn names_that_overlap_cannot_fill_the_memory() {
    use object::write::{Object, Symbol, SymbolSection};
    let mut object = Object::new(object::BinaryFormat::Elf, object::Architecture::X86_64, object::Endianness::Little);
    let mut add = |name: String| {
        object.add_symbol(Symbol {
            name: name.into_bytes(),
            value: 0,
            size: 0,
            kind: object::SymbolKind::Unknown,
            scope: object::SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Undefined,
            flags: object::SymbolFlags::None,
        });
    };
    (0..3000).for_each(|i| add(format!("s{i}")));
    add("a".repeat(100_000));
    let mut bytes = object.write().unwrap();
    // Every symbol's name becomes a tail of the long one.
    let long = bytes.windows(100_000).position(|window| window.iter().all(|&byte| byte == b'a')).unwrap();
    let number = |at: usize| usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
    let headers = (1..).map(|section| number(40) + 64 * section);
    let symtab = headers.clone().find(|&at| bytes[at + 4] == 2).unwrap();
    let link = usize::from(bytes[symtab + 40]);
    let (symbols, strings) = (number(symtab + 24), number(number(40) + 64 * link + 24));
    for i in 1..=3000_usize {
        let name = u32::try_from(long - strings + i).unwrap();
        bytes[symbols + 24 * i..symbols + 24 * i + 4].copy_from_slice(&name.to_le_bytes());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.o");
    std::fs::write(&path, bytes).unwrap();
    let output = modhost(&["inspect", &path.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("and the limit is 67108864"), "{}", text(&output.stderr));
}
