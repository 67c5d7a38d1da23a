//! `modload --deps`: a thousand modules in a chain and in a star, named in the wrong order, and a cycle.

use std::path::Path;
use std::process::{Command, Output};

use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope, elf,
};
use serde_json::Value;

const COUNT: usize = 1000;

fn name(i: usize) -> String {
    format!("m{i:04}")
}

/// Returns a module that exports `f_i`, which returns 1 more than the sum of the results of the modules it needs.
fn module(i: usize, needs: &[usize]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let symbol = |object: &mut Object<'_>, name: String, section, size| {
        object.add_symbol(Symbol {
            name: name.into_bytes(),
            value: 0,
            size,
            kind: if size == 0 { SymbolKind::Unknown } else { SymbolKind::Text },
            scope: SymbolScope::Dynamic,
            weak: false,
            section,
            flags: SymbolFlags::None,
        })
    };
    // push %rbx; mov $1,%ebx; (call need; add %eax,%ebx)*; mov %ebx,%eax; pop %rbx; ret
    let mut code = vec![0x53, 0xbb, 1, 0, 0, 0];
    let mut calls = Vec::new();
    for need in needs {
        calls.push((code.len() + 1, *need));
        code.extend([0xe8, 0, 0, 0, 0, 0x01, 0xc3]);
    }
    code.extend([0x89, 0xd8, 0x5b, 0xc3]);
    let text = object.section_id(StandardSection::Text);
    object.append_section_data(text, &code, 16);
    let own = symbol(&mut object, format!("f_{i}"), SymbolSection::Section(text), code.len().try_into().unwrap());
    let relocate = |object: &mut Object<'_>, section, offset, symbol, addend, kind| {
        let flags = RelocationFlags::Elf { r_type: kind };
        object.add_relocation(section, Relocation { offset, symbol, addend, flags }).unwrap();
    };
    for (at, need) in calls {
        let needed = symbol(&mut object, format!("f_{need}"), SymbolSection::Undefined, 0);
        relocate(&mut object, text, at.try_into().unwrap(), needed, -4, elf::R_X86_64_PLT32);
    }
    let strings = object.add_section(Vec::new(), b"__ksymtab_strings".into(), SectionKind::ReadOnlyData);
    object.append_section_data(strings, format!("f_{i}\0").as_bytes(), 1);
    let string = object.section_symbol(strings);
    let table = object.add_section(Vec::new(), b"__ksymtab".into(), SectionKind::ReadOnlyData);
    object.append_section_data(table, &[0; 12], 4);
    relocate(&mut object, table, 0, own, 0, elf::R_X86_64_PC32);
    relocate(&mut object, table, 4, string, 0, elf::R_X86_64_PC32);
    let info = object.add_section(Vec::new(), b".modinfo".into(), SectionKind::ReadOnlyData);
    object.append_section_data(info, format!("name={}\0", name(i)).as_bytes(), 1);
    object.write().unwrap()
}

fn folder(needs: impl Fn(usize) -> Vec<usize>, count: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..count {
        std::fs::write(dir.path().join(format!("{}.o", name(i))), module(i, &needs(i))).unwrap();
    }
    dir
}

fn modload(dir: &Path, options: &[&str], names: impl Iterator<Item = String>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
    command.arg("--deps").arg(dir).args(options);
    for (at, name) in names.enumerate() {
        if at != 0 {
            command.arg("--");
        }
        command.arg(name);
    }
    command.output().unwrap()
}

/// Returns the names of the modules in the order in which they reach a state.
fn order(output: &Output, state: &str) -> Vec<String> {
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_state = events.filter(|event| event["event"] == "state" && event["state"] == state);
    of_state.map(|event| event["module"].as_str().unwrap().to_owned()).collect()
}

const TRACE: [&str; 3] = ["--trace", "--format", "json"];

#[test]
fn a_chain_loads_from_its_end_and_unloads_from_its_beginning() {
    let dir = folder(|i| if i + 1 < COUNT { vec![i + 1] } else { vec![] }, COUNT);
    let called = modload(dir.path(), &["--call", "f_0"], std::iter::once(name(0)));
    assert_eq!(
        String::from_utf8_lossy(&called.stdout),
        "f_0() = 1000\n",
        "{}",
        String::from_utf8_lossy(&called.stderr)
    );
    let traced = modload(dir.path(), &TRACE, std::iter::once(name(0)));
    let expected: Vec<_> = (0..COUNT).rev().map(name).collect();
    assert_eq!(order(&traced, "LIVE"), expected);
    assert_eq!(order(&traced, "GOING"), expected.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn a_star_loads_its_centre_first_and_unloads_it_last() {
    let dir = folder(|i| if i == 0 { vec![] } else { vec![0] }, COUNT);
    let traced = modload(dir.path(), &TRACE, (0..COUNT).rev().map(name));
    let (live, going) = (order(&traced, "LIVE"), order(&traced, "GOING"));
    assert_eq!((live.len(), live[0].as_str()), (COUNT, "m0000"));
    assert_eq!(going, live.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn only_what_is_needed_is_loaded() {
    let dir = folder(|i| if i == 3 { vec![1, 2] } else { vec![] }, 5);
    let traced = modload(dir.path(), &TRACE, std::iter::once(name(3)));
    let mut live = order(&traced, "LIVE");
    assert_eq!(live.pop().as_deref(), Some("m0003"));
    live.sort();
    assert_eq!(live, ["m0001", "m0002"]);
}

#[test]
fn a_cycle_prints_itself_and_nothing_is_loaded() {
    let dir = folder(|i| vec![(i + 1) % 3], 3);
    let output = modload(dir.path(), &["--trace"], std::iter::once(name(0)));
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("modload: modules need each other: "), "{error}");
    for part in
        ["\"m0000\", which needs \"m0001\"", "\"m0001\", which needs \"m0002\"", "\"m0002\", which needs \"m0000\""]
    {
        assert!(
            error.contains(part) || error.trim_end().ends_with(part.split(", ").next().unwrap()),
            "{part}: {error}"
        );
    }
    let missing = modload(dir.path(), &[], std::iter::once("nobody".into()));
    assert_eq!(String::from_utf8_lossy(&missing.stderr), "modload: there is no module \"nobody\" in the folder\n");
}
