//! Refused inputs, each with its error text.

use modload_fixtures::{Compiler, Language};
use object::elf;
use object::write::Symbol;
use object::{SectionKind, SymbolFlags};

use super::faithful::View;
use super::{LAYOUT, assembled, check, compiled, marked_object, relocate};
use crate::link::{PatchLinkError, link};

#[test]
fn what_cannot_be_is_refused_by_name() {
    let long = |letter: &str, count: usize| letter.repeat(count);
    let cases = [
        ("call elsewhere".to_owned(), "the object has no marked symbol: declare"),
        ("call .modload.klp.greet".into(), "it names an object alone"),
        ("call .modload.klp.greet.hello".into(), "it has no position"),
        ("call .modload.klp.greet.hello.".into(), "its position is no number"),
        ("call .modload.klp.greet.hello.x".into(), "its position is no number"),
        ("call .modload.klp.greet.hello.01".into(), "its position is no number"),
        ("call .modload.klp.greet.hello.18446744073709551616".into(), "its position is no number"),
        ("call .modload.klp..hello.0".into(), "it names no object"),
        ("call .modload.klp.greet..0".into(), "it names no symbol"),
        ("call \".modload.klp.greet.a,b.0\"".into(), "there is a comma in its name"),
        (
            format!("call .modload.klp.{}.hello.0", long("o", 56)),
            "its object's name has 56 bytes, and Linux's limit is 55",
        ),
        (format!("call .modload.klp.{}", long("o", 700)), "its object's name has"),
        (
            format!("call .modload.klp.greet.{}.0", long("n", 512)),
            "its symbol's name has 512 bytes, and Linux's limit is 511",
        ),
        (format!("call .modload.klp.greet.{}.0", long("n", 900)), "and Linux's limit is 511"),
        (".globl .modload.klp.greet.hello.0\n.modload.klp.greet.hello.0: ret".into(), "is defined in this object"),
        (".comm .modload.klp.greet.count.0, 4".into(), "is defined in this object"),
        ("movq .modload.klp.greet.own.0@gottpoff(%rip), %rax".into(), "\".modload.klp.greet.own.0\" is thread-local"),
        (
            ".section .init.text,\"ax\"\ncall .modload.klp.greet.hello.0".into(),
            ".init.text refers to \"hello\", but is freed before greet is loaded",
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
fn compact_relocations_are_refused_by_their_section() {
    let mut object = assembled(LAYOUT);
    let headers = usize::try_from(u64::from_le_bytes(object[0x28..0x30].try_into().unwrap())).unwrap();
    let is_rela = |at: &usize| object[headers + 64 * at + 4..][..4] == elf::SHT_RELA.0.to_le_bytes();
    let at = (0..).find(is_rela).unwrap();
    object[headers + 64 * at + 4..][..4].copy_from_slice(&modload_abi::known::SHT_CREL.to_le_bytes());
    let refused = link(&object).unwrap_err().to_string();
    assert!(refused.contains(&format!("section {at}: compact relocations (SHT_CREL) cannot be linked")), "{refused}");
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
        matches!(refused, PatchLinkError::NoLivePatch) && refused.to_string().contains("MODULE_INFO(livepatch"),
        "{refused}"
    );
    let linked = link(&object).unwrap();
    match link(&linked.bytes).unwrap_err() {
        PatchLinkError::LinkedAlready { section } => assert_eq!(section, ".klp.rela.greet..data"),
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

/// Returns the offset of a section's header in a file, by the section's name.
fn header_of(object: &[u8], name: &str) -> usize {
    let view = View::new(object);
    let at = view.sections.iter().rposition(|section| view.name(section) == name).unwrap();
    usize::try_from(u64::from_le_bytes(object[40..48].try_into().unwrap())).unwrap() + 64 * at
}

#[test]
fn sections_that_overlap_are_refused() {
    let mut object = assembled(LAYOUT);
    let (header, size) = (header_of(&object, ".debug_info"), u64::try_from(object.len()).unwrap());
    object[header + 24..header + 32].copy_from_slice(&0_u64.to_le_bytes());
    object[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
    let refused = link(&object).unwrap_err();
    assert!(matches!(refused, PatchLinkError::Overlap { file, bytes } if file == size && bytes > size), "{refused}");
}

/// The loader ignores the sections of a group that another group with the same signature has replaced.
#[test]
fn a_part_of_a_relocation_is_refused() {
    let group = |signature: &str| {
        format!(
            ".section .text.{signature},\"axG\",@progbits,{signature},comdat\n.weak {signature}\n{signature}: \
             call .modload.klp.greet.hello.0\n"
        )
    };
    let mut object = assembled(&format!("{}{}", group("one"), group("two")));
    let (one, two) = (header_of(&object, ".group"), header_of(&object, ".rela.text.two"));
    assert!(link(&object).is_ok());
    // The second group gets the signature of the first.
    object.copy_within(one - 64 + 44..one - 64 + 48, one + 44);
    object[two + 32] += 1;
    let refused = link(&object).unwrap_err();
    assert!(
        matches!(refused, PatchLinkError::Malformed { problem: "no whole number of relocations", .. }),
        "{refused}"
    );
}

#[test]
fn names_without_bound_are_refused() {
    let (mut object, _, mark) = marked_object();
    let name = "x".repeat(1 << 20);
    for _ in 0..70 {
        let section = object.add_section(Vec::new(), name.clone().into_bytes(), SectionKind::Text);
        object.append_section_data(section, &[0; 8], 8);
        relocate(&mut object, section, mark, 0, elf::R_X86_64_PC32);
    }
    let refused = link(&object.write().unwrap()).unwrap_err();
    assert!(matches!(refused, PatchLinkError::TooLarge { limit, .. } if limit == 64 << 20), "{refused}");
}
