//! Next to GNU ld: `ld -r` must make the same sections, relocations and symbols of the same objects, and take the same
//! members of an archive in the same order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use modload_abi::section;
use modload_edit::index;
use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use object::elf;
use object::write::{Object as NewObject, Symbol as NewSymbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope};

use super::{Input, link};
use crate::elf::error::ObjectError;
use crate::elf::file::{File, SymbolPlace};

const LIMIT: u64 = 1 << 30;

fn input(path: &Path) -> Input<'static> {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    Input { name, bytes: fs::read(path).unwrap().into() }
}

fn run(tool: &str, dir: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(tool).args(arguments).current_dir(dir).env("LC_ALL", "C").output();
    output.unwrap_or_else(|error| panic!("cannot run `{tool}`, which is part of binutils: {error}"))
}

/// The contents of an object, without the choices of the linker: the order of sections and symbols, and section symbols
/// or their offsets.
#[derive(PartialEq, Eq, Debug)]
struct Content {
    sections: BTreeMap<String, (u64, u64, Vec<u8>)>,
    /// By section: offset, relocation number, target, addend.
    relocations: BTreeMap<String, Vec<(u64, u32, String, i64)>>,
    /// By name: binding, type, visibility, place, value, size.
    globals: BTreeMap<String, (u8, u8, u8, String, u64, u64)>,
}

fn content(bytes: &[u8]) -> Content {
    let file = File::validate(bytes).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let place = |place: SymbolPlace| match place {
        SymbolPlace::Section(section) => text(file.sections[index(section.into())].name),
        other => format!("{other:?}"),
    };
    // ld merges these notes into one, and takes apart and edits the rows of .eh_frame.
    let edited = |name: &[u8]| name == b".note.gnu.property" || name == section::EH_FRAME.as_bytes();
    let kept = file.sections.iter().filter(|section| section.kept && !edited(section.name));
    let mut sections = BTreeMap::new();
    for section in kept.filter(|section| section.size != 0) {
        let twice = sections.insert(text(section.name), (section.size, section.align, section.data.to_vec()));
        assert!(twice.is_none(), "{} was not merged", text(section.name));
    }
    let mut relocations = BTreeMap::new();
    for relas in file.relas.iter().filter(|relas| !edited(file.sections[index(relas.target.into())].name)) {
        let records = relas.records.iter().map(|rela| {
            let symbol = file.symbol(rela.symbol).unwrap();
            match symbol.place {
                SymbolPlace::Section(_) if symbol.bind == elf::STB_LOCAL => {
                    let addend = rela.addend + i64::try_from(symbol.value).unwrap();
                    (rela.offset, rela.kind, place(symbol.place), addend)
                }
                _ => (rela.offset, rela.kind, text(symbol.name()), rela.addend),
            }
        });
        let mut records: Vec<_> = records.collect();
        records.sort();
        relocations.insert(text(file.sections[index(relas.target.into())].name), records);
    }
    let globals = file.symbols().skip(1).filter(|(_, symbol)| symbol.bind != elf::STB_LOCAL);
    let globals = globals.map(|(_, symbol)| {
        // For COMMON symbols, both types mean the same.
        let kind = if symbol.kind == elf::STT_COMMON { elf::STT_OBJECT } else { symbol.kind };
        let says = (symbol.bind.0, kind.0, symbol.visibility.0, place(symbol.place), symbol.value, symbol.size);
        (text(symbol.name()), says)
    });
    Content { sections, relocations, globals: globals.collect() }
}

/// Links objects here and with `ld -r`.
fn check(what: &str, objects: &[PathBuf]) {
    let inputs: Vec<_> = objects.iter().map(|path| input(path)).collect();
    let ours = link(&inputs, &[], LIMIT).unwrap();
    assert_eq!(ours.objects.len(), objects.len(), "{what}");
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = vec!["-r", "-o", "all.o"];
    arguments.extend(objects.iter().map(|path| path.to_str().unwrap()));
    let output = run("ld", dir.path(), &arguments);
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    let theirs = content(&fs::read(dir.path().join("all.o")).unwrap());
    let mut ours = content(&ours.bytes);
    for (name, (_, _, data)) in &mut ours.sections {
        let (_, _, theirs) = &theirs.sections[name];
        // Gaps are INT3 here, NOPs there.
        data.iter_mut().zip(theirs).filter(|(byte, _)| **byte == 0xcc).for_each(|(byte, theirs)| *byte = *theirs);
    }
    assert_eq!(ours.globals, theirs.globals, "{what}");
    assert_eq!(ours.relocations, theirs.relocations, "{what}");
    for (name, section) in &theirs.sections {
        assert_eq!(ours.sections.get(name), Some(section), "{what}: {name}");
    }
    assert_eq!(ours.sections.len(), theirs.sections.len(), "{what}");
}

fn compiled(name: &str, language: Language, text: &str, compiler: Compiler, flags: &[&str]) -> PathBuf {
    object_from_text(name, language, text, compiler, flags).unwrap()
}

/// Returns the available compilers, and prints the missing ones.
fn compilers() -> Vec<Compiler> {
    let (there, missing): (Vec<_>, Vec<_>) =
        [Compiler::Gcc, Compiler::Clang].into_iter().partition(|compiler| compiler.find().is_some());
    missing.iter().for_each(|compiler| eprintln!("SKIPPED: {compiler:?} is not there"));
    there
}

#[test]
fn halves_of_a_program_are_merged_as_ld_does() {
    for compiler in compilers() {
        for flags in [&["-O2"][..], &["-O0", "-fno-pic"], &["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections"]] {
            let half = |define| {
                let flags: Vec<_> = flags.iter().copied().chain([define]).collect();
                Fixture::new("matrix").object(compiler, &flags).unwrap()
            };
            check(&format!("{compiler:?} {flags:?}"), &[half("-DHALF=1"), half("-DHALF=2")]);
        }
    }
}

#[test]
fn modules_of_the_sdk_are_merged_as_ld_does() {
    for compiler in compilers() {
        let objects = ["greet", "export_data", "common", "ro_after_init"]
            .map(|name| Fixture::new(name).object(compiler, &["-O2", "-fPIC"]).unwrap());
        // Two objects define an init, but a module may have only one.
        check(&format!("{compiler:?}"), &objects[1..3]);
        let inputs = objects.iter().map(|path| input(path)).collect::<Vec<_>>();
        let refused = link(&inputs, &[], LIMIT).unwrap_err();
        assert!(matches!(&refused, ObjectError::DefinedTwice { symbol, .. } if symbol == "init_module"), "{refused}");
    }
}

const INLINE: &str = "inline int shared(int x) { static int calls; return calls += x; }\n\
                      template <class T> struct Holder { static T value; virtual ~Holder() {} };\n\
                      template <class T> T Holder<T>::value = 5;\n";

#[test]
fn of_groups_with_one_signature_the_first_is_kept() {
    if Compiler::Gcc.find_for(Language::Cxx).is_none() {
        eprintln!("SKIPPED: there is no C++ compiler");
        return;
    }
    let one = format!("{INLINE} int one() {{ Holder<int> h; return shared(1) + Holder<int>::value; }}");
    let two = format!("{INLINE} int two() {{ Holder<int> h; return shared(2) + Holder<int>::value; }}");
    let objects = [("one", one), ("two", two)].map(|(name, text)| {
        compiled(name, Language::Cxx, &text, Compiler::Gcc, &["-O0", "-fno-asynchronous-unwind-tables"])
    });
    check("groups", &objects);
}

#[test]
fn definitions_are_chosen_as_ld_does() {
    let texts = [
        "int both; int larger[10]; int given = 3; __attribute__((weak)) int soft(void) { return 1; }\n\
         __attribute__((weak)) int late; extern int hard(void) __attribute__((weak)); int a(void) { return hard(); }",
        "int both; int larger[99] __attribute__((aligned(64))); int given; int soft(void) { return 2; }\n\
         int late = 5; __attribute__((visibility(\"hidden\"))) int hard(void); int b(void) { return hard(); }",
        "__attribute__((weak)) int soft(void) { return 3; } int hard(void) { return both_(); } int both_(void);",
    ];
    for compiler in compilers() {
        let object = |at: usize| {
            let flags = ["-O1", "-fcommon", "-w", "-Wno-implicit-function-declaration"];
            compiled(&format!("text{at}"), Language::C, texts[at], compiler, &flags)
        };
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            check(&format!("{compiler:?} {order:?}"), &order.map(object));
        }
    }
}

/// Numbers that look random and are always the same.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// An object that defines and needs some of the symbols `s0` to `s11`.
fn random_object(chance: &mut Chance) -> Vec<u8> {
    let mut object = NewObject::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let data = object.section_id(object::write::StandardSection::Data);
    object.append_section_data(data, &[0; 8], 8);
    for number in 0..12 {
        let (section, weak, size) = match chance.below(13) {
            0 => (SymbolSection::Section(data), false, 8),
            // No symbol is both weak and COMMON: the choice of ld then depends on the order in which ld has searched.
            1 | 2 if number % 2 == 0 => (SymbolSection::Section(data), true, 8),
            1 | 2 => (SymbolSection::Common, false, 8),
            3 | 4 => (SymbolSection::Undefined, false, 0),
            5 => (SymbolSection::Undefined, true, 0),
            _ => continue,
        };
        object.add_symbol(NewSymbol {
            name: format!("s{number}").into_bytes(),
            value: if section == SymbolSection::Common { 8 } else { 0 },
            size,
            kind: if section == SymbolSection::Undefined { SymbolKind::Unknown } else { SymbolKind::Data },
            scope: SymbolScope::Dynamic,
            weak,
            section,
            flags: SymbolFlags::None,
        });
    }
    object.write().unwrap()
}

/// The objects that `ld` takes, in order, or `None` if a symbol is defined twice.
fn taken_by_ld(dir: &Path, inputs: &[&str]) -> Option<Vec<String>> {
    let output = run("ld", dir, &[&["-r", "-t", "-t", "-u", "s0", "-o", "all.o"][..], inputs].concat());
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("multiple definition"), "{said}");
        return None;
    }
    let lines = String::from_utf8(output.stdout).unwrap();
    // An object by file name, a member as `libx.a(m1.o)` or `(libx.a)m1.o`, and the archives themselves.
    let member = |line: &str| line.rsplit(['(', ')']).find(|part| part.ends_with(".o")).map(str::to_owned);
    Some(lines.lines().filter_map(member).collect())
}

#[test]
fn members_are_taken_as_ld_does() {
    let mut chance = Chance(7);
    let (mut linked, mut refused, mut taken) = (0, 0, 0);
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        write("main.o", &random_object(&mut chance));
        let mut inputs = vec!["main.o"];
        for (archive, first) in [("libx.a", 0), ("liby.a", 5)] {
            let members: Vec<String> = (first..first + 5).map(|number| format!("m{number}.o")).collect();
            members.iter().for_each(|name| write(name, &random_object(&mut chance)));
            let mut arguments = vec!["rcs", archive];
            arguments.extend(members.iter().map(String::as_str));
            assert!(run("ar", dir.path(), &arguments).status.success());
            inputs.push(archive);
        }
        let ours: Vec<_> = inputs.iter().map(|name| input(&dir.path().join(name))).collect();
        let wanted = ["s0".to_owned()];
        match (link(&ours, &wanted, LIMIT), taken_by_ld(dir.path(), &inputs)) {
            (Ok(ours), Some(theirs)) => {
                let names = ours.objects.iter().map(|name| name.rsplit('(').next().unwrap().trim_end_matches(')'));
                assert_eq!(names.collect::<Vec<_>>(), theirs, "round {round}");
                let globals = |bytes: &[u8]| {
                    let mut globals = content(bytes).globals;
                    // Our result omits names that only the caller has asked for.
                    globals.retain(|name, says| name != "s0" || says.3 != "Undefined");
                    globals
                };
                let all = fs::read(dir.path().join("all.o")).unwrap();
                assert_eq!(globals(&ours.bytes), globals(&all), "round {round}");
                linked += 1;
                taken += theirs.len() - 1;
            }
            (Err(ObjectError::DefinedTwice { .. }), None) => refused += 1,
            (ours, theirs) => panic!("round {round}: {ours:?} here, {theirs:?} there"),
        }
    }
    // Each outcome is met often.
    assert!(linked > 20 && refused > 5 && taken > 50, "{linked} linked, {refused} refused, {taken} members taken");
}
