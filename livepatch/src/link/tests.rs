//! Objects of each compiler and of the assembler: the linked results, and the inputs that are refused.

mod faithful;
mod mutants;
mod refused;

use std::fs;
use std::io::Write as _;
use std::process::Command;

use modload_fixtures::{Compiler, Language, WAYS, object_from_text};
use object::elf;
use object::write::{self, Object, Relocation, RelocationFlags, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

use super::{Linked, LinkedObject, link};

/// Every kind of reference: calls, tail calls, data, addresses in data; a name with dots, and a symbol that is declared
/// twice.
const PATCH: &str = r#"
#include <modload/livepatch.h>
#ifdef __cplusplus
extern "C" {
#endif
extern int count KLP_SYMBOL(greet, greet_count, 0);
extern int again KLP_SYMBOL(greet, greet_count, 0);
int hello(int n) KLP_SYMBOL(greet, hello, 2);
int step(int n) KLP_SYMBOL_NAMED(greet, "step.isra.0", 0);
int show(void) KLP_SYMBOL(vmlinux, proc_show, 0);
int elsewhere(int n);
extern int *variable;
int *variable = &count;
extern int (*functions[2])(int);
int (*functions[2])(int) = { hello, elsewhere };
int new_hello(int n);
int new_hello(int n) { count += n; again++; return hello(n) + step(elsewhere(count)) + show(); }
int tail(int n);
int tail(int n) { return step(n); }
void pass(int *at);
void pass_on(void);
void pass_on(void) { pass(&count); }
#ifdef __cplusplus
}
#endif
MODULE_INFO(livepatch, "Y");
"#;

fn skipped(what: &str) {
    writeln!(std::io::stderr().lock(), "SKIPPED {what}").unwrap();
}

fn compiled(language: Language, text: &str, compiler: Compiler, flags: &[&str]) -> Vec<u8> {
    fs::read(object_from_text("patch", language, text, compiler, flags).unwrap_or_else(|error| panic!("{error}")))
        .unwrap()
}

/// An object from the assembler, with the .modinfo of a patch.
fn assembled(text: &str) -> Vec<u8> {
    let modinfo = ".section .modinfo,\"a\"\n.asciz \"livepatch=Y\"\n";
    compiled(Language::Assembler, &format!(".text\n{text}\n{modinfo}"), Compiler::Cc, &[])
}

fn check(object: &[u8]) -> Linked {
    let linked = link(object).unwrap_or_else(|error| panic!("{error}"));
    let (waiting, _) = faithful::check(object, &linked.bytes);
    let told = linked.objects.iter().flat_map(|object| &object.sections).map(|section| section.relocations);
    assert_eq!(told.sum::<usize>(), waiting);
    linked
}

fn symbols(object: &LinkedObject) -> Vec<String> {
    let mut symbols: Vec<_> =
        object.symbols.iter().map(|symbol| format!("{},{}", symbol.name, symbol.position)).collect();
    symbols.sort();
    symbols
}

#[test]
fn every_compiler_in_every_way() {
    let more: [&[&str]; 3] =
        [&["-O0", "-fPIC"], &["-O0", "-fno-pic", "-mcmodel=kernel"], &["-O2", "-g", "-fPIC", "-ffunction-sections"]];
    let ways = WAYS.iter().filter(|way| !way.halves).map(|way| way.flags).chain(more);
    let mut done = 0;
    for flags in ways {
        for language in [Language::C, Language::Cxx] {
            for &compiler in Compiler::for_language(language) {
                if compiler.find_for(language).is_none() {
                    skipped(&format!("{compiler} for {language}: it is not there"));
                    continue;
                }
                let linked = check(&compiled(language, PATCH, compiler, flags));
                let mut objects = linked.objects;
                objects.sort_by(|one, other| one.name.cmp(&other.name));
                let [greet, vmlinux] = &objects[..] else { panic!("{objects:?}") };
                assert_eq!((&*greet.name, &*vmlinux.name), ("greet", "vmlinux"), "{compiler} {flags:?}");
                assert_eq!(symbols(greet), ["greet_count,0", "hello,2", "step.isra.0,0"], "{compiler} {flags:?}");
                assert_eq!(symbols(vmlinux), ["proc_show,0"]);
                assert!(greet.sections.iter().any(|section| section.name.contains("data")), "{greet:?}");
                assert!(vmlinux.sections.iter().all(|section| section.name.contains("text")), "{vmlinux:?}");
                done += 1;
            }
        }
    }
    assert!(done >= WAYS.len(), "{done} objects");
}

#[test]
fn files_that_ld_has_merged_share_their_marks() {
    let texts =
        ["call .modload.klp.greet.hello.0\nret", ".data\n.quad .modload.klp.greet.hello.0, .modload.klp.greet.count.0"];
    let folder = tempfile::tempdir().unwrap();
    let names = ["one.o", "two.o"];
    names.iter().zip(texts).for_each(|(name, text)| fs::write(folder.path().join(name), assembled(text)).unwrap());
    let merged = Command::new("ld").args(["-r", "-o", "all.o"]).args(names).current_dir(folder.path()).status();
    assert!(merged.unwrap_or_else(|error| panic!("cannot run `ld`, which is part of binutils: {error}")).success());
    let linked = check(&fs::read(folder.path().join("all.o")).unwrap());
    assert_eq!(symbols(&linked.objects[0]), ["count,0", "hello,0"]);
    let sections: Vec<_> =
        linked.objects[0].sections.iter().map(|section| (&*section.name, section.relocations)).collect();
    assert_eq!(sections, [(".text", 1), (".data", 2)]);
}

/// Two sections of relocations. From the first, all relocations move, for one object. From the second, some move, for
/// two objects.
const LAYOUT: &str = "
    call .modload.klp.greet.hello.0
    call .modload.klp.vmlinux.step.isra.0.2
    call elsewhere
    incl .modload.klp.greet.count.0(%rip)
    ret
.data
    .quad 0, .modload.klp.greet.count.0+8
.section .debug_info
    .quad .modload.klp.greet.count.0, elsewhere
";

#[test]
fn the_file_is_what_linux_reads() {
    let linked = check(&assembled(LAYOUT));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("patch.ko");
    fs::write(&path, &linked.bytes).unwrap();
    let read = Command::new("readelf").arg("-rsSW").arg(&path).env("LC_ALL", "C").output();
    let read = read.unwrap_or_else(|error| panic!("cannot run `readelf`, which is part of binutils: {error}"));
    assert!(read.status.success() && read.stderr.is_empty(), "{}", String::from_utf8_lossy(&read.stderr));
    let text = String::from_utf8(read.stdout).unwrap();
    // The comparison leaves out most positions in the file.
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = text.lines().map(squeezed).collect();
    for wanted in [
        "[ 1] .text PROGBITS 0000000000000000 000040 000016 00 AX 0 0 1",
        "R_X86_64_PLT32 0000000000000000 .klp.sym.greet.hello,0 - 4",
        "R_X86_64_PC32 0000000000000000 .klp.sym.greet.count,0 - 4",
        "R_X86_64_PLT32 0000000000000000 .klp.sym.vmlinux.step.isra.0,2 - 4",
        "R_X86_64_64 0000000000000000 .klp.sym.greet.count,0 + 8",
        "R_X86_64_64 0000000000000000 .klp.sym.greet.count,0 + 0",
        "0000000000000000 0 NOTYPE GLOBAL DEFAULT OS [0xff20] .klp.sym.greet.hello,0",
        "0000000000000000 0 NOTYPE GLOBAL DEFAULT OS [0xff20] .klp.sym.vmlinux.step.isra.0,2",
        "0000000000000000 0 NOTYPE GLOBAL DEFAULT OS [0xff20] .klp.sym.greet.count,0",
        "0000000000000000 0 NOTYPE GLOBAL DEFAULT UND elsewhere",
    ] {
        assert!(lines.iter().any(|line| line.ends_with(wanted)), "{wanted}:\n{text}");
    }
    let waiting: Vec<String> = lines
        .iter()
        .filter(|line| line.contains("] .") && line.contains(" RELA "))
        .map(|line| {
            let words: Vec<&str> = line.split("] ").nth(1).unwrap().split(' ').collect();
            format!("{} {} {} of {}", words[0], words[4], words[6], words[8])
        })
        .collect();
    // The section's size, its flags, and the section that it relocates: 1 is .text, 3 .data.
    let expected = [
        ".rela.text 000018 I of 1",
        ".klp.rela.greet..data 000018 AIo of 3",
        ".rela.debug_info 000030 I of 6",
        ".klp.rela.greet..text 000030 AIo of 1",
        ".klp.rela.vmlinux..text 000018 AIo of 1",
    ];
    assert_eq!(waiting, expected, "{text}");
    let told: Vec<_> =
        linked.objects.iter().map(|object| (&*object.name, symbols(object), object.sections.len())).collect();
    let symbols = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(told, [("greet", symbols(&["count,0", "hello,0"]), 2), ("vmlinux", symbols(&["step.isra.0,2"]), 1)]);
}

#[test]
fn debug_information_stays() {
    for compiler in [Compiler::Gcc, Compiler::Clang] {
        if compiler.find().is_none() {
            skipped(&format!("{compiler}: it is not there"));
            continue;
        }
        let object = compiled(Language::C, PATCH, compiler, &["-O2", "-g", "-fPIC"]);
        let linked = check(&object);
        let folder = tempfile::tempdir().unwrap();
        let dumped = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            let output = Command::new("readelf").args(["-wi", "-W"]).arg(&path).env("LC_ALL", "C").output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let (before, after) = (dumped("before.o", &object), dumped("after.ko", &linked.bytes));
        assert_eq!(after, before);
        assert!(before.contains("new_hello"), "{before}");
    }
}

#[test]
fn a_section_of_a_group_is_joined_by_its_relocations() {
    let object = assembled(
        ".section .text.shared,\"axG\",@progbits,shared,comdat
        .weak shared
        shared: call .modload.klp.greet.hello.0
        call .modload.klp.guest.hello.0
        jmp elsewhere",
    );
    let linked = check(&object);
    let view = faithful::View::new(&linked.bytes);
    let mut groups = view.sections.iter().filter_map(|section| {
        use object::read::elf::SectionHeader as _;
        section.group(object::LittleEndian, view.bytes).unwrap()
    });
    let (flags, members) = groups.next().unwrap();
    assert_eq!(flags.0, elf::GRP_COMDAT.0);
    let names: Vec<String> = members
        .iter()
        .map(|member| {
            view.sections.section(object::SectionIndex(usize::try_from(member.get(object::LittleEndian)).unwrap()))
        })
        .map(|section| view.name(section.unwrap()))
        .collect();
    let expected =
        [".text.shared", ".rela.text.shared", ".klp.rela.greet..text.shared", ".klp.rela.guest..text.shared"];
    assert_eq!(names, expected);
}

#[test]
fn a_symbol_that_nothing_loaded_refers_to_waits_too() {
    let linked = check(&assembled("ret\n.section .debug_info\n.quad .modload.klp.greet.count.0"));
    assert_eq!(symbols(&linked.objects[0]), ["count,0"]);
    assert!(linked.objects[0].sections.is_empty());
}

#[test]
fn positions_and_names_may_be_as_long_as_linux_takes_them() {
    let (object, name) = ("o".repeat(55), "n.".repeat(255) + "n");
    let linked = check(&assembled(&format!("call .modload.klp.{object}.{name}.18446744073709551615")));
    assert_eq!((&linked.objects[0].name, symbols(&linked.objects[0])), (&object, vec![format!("{name},{}", u64::MAX)]));
}

fn undefined(name: &str) -> Symbol {
    Symbol {
        name: name.as_bytes().to_vec(),
        value: 0,
        size: 0,
        kind: SymbolKind::Unknown,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Undefined,
        flags: SymbolFlags::None,
    }
}

/// A patch without relocations, with a text of 64 bytes, and the symbol that is marked in it.
fn marked_object() -> (Object<'static>, write::SectionId, write::SymbolId) {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let modinfo = object.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
    object.append_section_data(modinfo, b"livepatch=Y\0", 1);
    let text = object.section_id(write::StandardSection::Text);
    object.append_section_data(text, &[0; 64], 16);
    let mark = object.add_symbol(undefined(".modload.klp.greet.hello.0"));
    (object, text, mark)
}

fn relocate(
    object: &mut Object<'_>,
    text: write::SectionId,
    symbol: write::SymbolId,
    offset: u64,
    r_type: elf::RelocationType,
) {
    let flags = RelocationFlags::Elf { r_type };
    object.add_relocation(text, Relocation { offset, symbol, addend: -4, flags }).unwrap();
}

#[test]
fn sections_may_become_more_than_the_header_counts() {
    let (mut object, text, mark) = marked_object();
    relocate(&mut object, text, mark, 0, elf::R_X86_64_PC32);
    let other = object.add_symbol(undefined("elsewhere"));
    relocate(&mut object, text, other, 8, elf::R_X86_64_PC32);
    let named = |object: &Object<'_>| faithful::View::new(&object.write().unwrap()).sections.len();
    while named(&object) < 0xfeff {
        let missing = 0xfeff - named(&object);
        for _ in 0..missing {
            object.add_section(Vec::new(), b".note".to_vec(), SectionKind::Note);
        }
    }
    let object = object.write().unwrap();
    let linked = check(&object);
    assert_eq!(u16::from_le_bytes([object[60], object[61]]), 0xfeff);
    assert_eq!(u16::from_le_bytes([linked.bytes[60], linked.bytes[61]]), 0, "the null section counts them");
    assert_eq!(faithful::View::new(&linked.bytes).sections.len(), 0xff00);
}
