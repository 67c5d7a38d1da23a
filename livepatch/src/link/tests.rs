//! Objects of each compiler and of the assembler, what becomes of them, and what is refused.

mod faithful;

use std::fs;
use std::io::Write as _;
use std::process::Command;

use modload_fixtures::{Compiler, Language, WAYS, object_from_text};
use object::elf;
use object::write::{self, Object, Relocation, RelocationFlags, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

use super::{Error, Linked, LinkedObject, link};

/// Every kind of reference: calls, tail calls, data, addresses in data; a name with dots, a symbol that is declared twice.
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

/// An object of the assembler's, with the .modinfo of a patch.
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

/// Two sections of relocations: one that all leave, for one object, and one that some leave, for two.
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
    // Without where things stand in the file.
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
    // Its size, its flags, and which section it relocates: 1 is .text, 3 .data.
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

#[test]
fn what_cannot_be_is_refused_by_name() {
    let long = |letter: &str, count: usize| letter.repeat(count);
    let cases = [
        ("call elsewhere".to_owned(), "nothing in it is marked: declare"),
        ("call .modload.klp.greet".into(), "it names an object alone"),
        ("call .modload.klp.greet.hello".into(), "it has no position"),
        ("call .modload.klp.greet.hello.".into(), "its position is no number"),
        ("call .modload.klp.greet.hello.x".into(), "its position is no number"),
        ("call .modload.klp.greet.hello.01".into(), "its position is no number"),
        ("call .modload.klp.greet.hello.18446744073709551616".into(), "its position is no number"),
        ("call .modload.klp..hello.0".into(), "it names no object"),
        ("call .modload.klp.greet..0".into(), "it names no symbol"),
        ("call \".modload.klp.greet.a,b.0\"".into(), "there is a comma in its name"),
        (format!("call .modload.klp.{}.hello.0", long("o", 56)), "its object's name has 56 bytes, and Linux takes 55"),
        (format!("call .modload.klp.{}", long("o", 700)), "its object's name has"),
        (
            format!("call .modload.klp.greet.{}.0", long("n", 512)),
            "its symbol's name has 512 bytes, and Linux takes 511",
        ),
        (format!("call .modload.klp.greet.{}.0", long("n", 900)), "and Linux takes 511"),
        (".globl .modload.klp.greet.hello.0\n.modload.klp.greet.hello.0: ret".into(), "is defined here"),
        (".comm .modload.klp.greet.count.0, 4".into(), "is defined here"),
        ("movq .modload.klp.greet.own.0@gottpoff(%rip), %rax".into(), "\".modload.klp.greet.own.0\" is thread-local"),
        (
            ".section .init.text,\"ax\"\ncall .modload.klp.greet.hello.0".into(),
            ".init.text refers to \"hello\", and is gone when greet comes",
        ),
        (".section .init.data,\"aw\"\n.quad .modload.klp.greet.count.0".into(), ".init.data refers to \"count\""),
    ];
    for (text, why) in cases {
        let refused = link(&assembled(&text)).expect_err(&text).to_string();
        assert!(refused.contains(why), "{text}: {refused}");
    }
    check(&assembled(".section .init.text,\"ax\"\ncall .modload.klp.vmlinux.hello.0"));
}

#[test]
fn what_is_no_patch_is_refused() {
    let object = assembled(LAYOUT);
    let with = |at: usize, bytes: &[u8]| {
        let mut object = object.clone();
        object[at..at + bytes.len()].copy_from_slice(bytes);
        link(&object).unwrap_err().to_string()
    };
    for (refused, why) in [
        (link(b"").unwrap_err().to_string(), "an empty file"),
        (link(b"!<arch>\n").unwrap_err().to_string(), "archive"),
        (with(4, &[1]), "32-bit"),
        (with(16, &[3, 0]), "a shared object"),
        (with(18, &[183, 0]), "AArch64"),
    ] {
        assert!(refused.contains(why), "{why}: {refused}");
    }
    let plain = compiled(Language::Assembler, "call .modload.klp.greet.hello.0", Compiler::Cc, &[]);
    let refused = link(&plain).unwrap_err();
    assert!(
        matches!(refused, Error::NoLivePatch) && refused.to_string().contains("MODULE_INFO(livepatch"),
        "{refused}"
    );
    let linked = link(&object).unwrap();
    match link(&linked.bytes).unwrap_err() {
        Error::LinkedAlready { section } => assert_eq!(section, ".klp.rela.greet..data"),
        refused => panic!("{refused}"),
    }
}

/// A symbol and relocations that no assembler writes.
#[test]
fn a_relocation_and_a_symbol_that_belie_their_marks_are_refused() {
    let made = |kind: elf::RelocationType, symbol: &dyn Fn(&mut Symbol)| {
        let (mut object, text, mark) = marked_object();
        symbol(object.symbol_mut(mark));
        relocate(&mut object, text, mark, 0, kind);
        link(&object.write().unwrap()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(made(elf::R_X86_64_PC32, &|_| {}), Ok(()));
    let refused = made(elf::R_X86_64_TPOFF32, &|_| {}).unwrap_err();
    assert!(refused.contains("\"hello\" is thread-local"), "{refused}");
    let (st_info, st_other) = (elf::SymbolInfo::new(elf::STB_LOCAL, elf::STT_NOTYPE), elf::SymbolOther(0));
    let local = made(elf::R_X86_64_PC32, &|symbol| symbol.flags = SymbolFlags::Elf { st_info, st_other });
    let refused = local.unwrap_err();
    assert!(refused.contains("is a local symbol that nothing defines"), "{refused}");
    let weak = made(elf::R_X86_64_PC32, &|symbol| symbol.weak = true);
    assert_eq!(weak, Ok(()), "a weak reference waits like any other");
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

/// A patch without relocations, its text of 64 bytes, and the symbol that is marked in it.
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

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16).unwrap() % bound.max(1)
    }
}

#[test]
fn mutants_never_do_more_than_fail() {
    let group =
        ".section .text.shared,\"axG\",@progbits,shared,comdat\nshared: call .modload.klp.guest.hello.0\njmp shared2";
    let mut objects = vec![assembled(LAYOUT), assembled(group)];
    let compilers = [Compiler::Gcc, Compiler::Clang].into_iter().filter(|compiler| compiler.find().is_some());
    objects.extend(compilers.map(|compiler| compiled(Language::C, PATCH, compiler, &["-O2", "-fPIC"])));
    let mut random = Random(0x6d6f_646c_6f61_6421);
    let (mut refused, rounds) = (0, 40_000);
    for round in 0..rounds {
        let object = &objects[round % objects.len()];
        let mut mutant = object.clone();
        if random.below(16) == 0 {
            mutant.truncate(random.below(object.len()));
        }
        let table = usize::try_from(u64::from_le_bytes(object[40..48].try_into().unwrap())).unwrap();
        for _ in 0..=random.below(3) {
            let end = mutant.len();
            // Most of them where the tables are.
            let from = if random.below(2) == 0 { table.min(end) } else { 0 };
            let at = from + random.below(end - from);
            let value = [0, 0xff, 1 << random.below(8), random.below(256)][random.below(4)];
            if let Some(byte) = mutant.get_mut(at) {
                *byte = u8::try_from(value).unwrap();
            }
        }
        match link(&mutant) {
            // Names are what makes it larger, and sections for objects.
            Ok(linked) => assert!(linked.bytes.len() < 4 * mutant.len() + (64 << 10), "round {round}"),
            Err(_) => refused += 1,
        }
    }
    println!("{refused} of {rounds} mutants of {} objects are refused", objects.len());
    assert!(refused > rounds / 8 && refused < rounds, "{refused} of {rounds} are refused");
}
