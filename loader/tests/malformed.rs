//! Malformed files: an error names the place, nothing panics, and nothing is left. No code of a module runs: every load
//! is made to fail before the text is published, at the latest.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

mod scene;

use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use modload_loader::{
    Error, FunctionBytes, Image, Inspection, LoadError, Loader, ObjectError, Policy, Stage, sentence,
};
use modload_text::Arena;
use scene::{BeforeRunning, Everything};

/// The tests of this file compare the whole arena, so they run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

struct Bench {
    loader: Loader,
    _alone: std::sync::MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Bench {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Bench { loader: Loader::new(Arc::new(Everything), Policy::default()).unwrap(), _alone: alone }
    }

    /// Loads as far as nothing runs; demands that nothing is left.
    fn load(&self, bytes: &[u8]) -> LoadError {
        let before = Arena::get().unwrap().usage().map(|stripe| (stripe.used, stripe.free));
        // SAFETY: no code of the image runs: see `BeforeRunning`.
        let image = unsafe { Image::trusted(bytes) }.named("mutant");
        let error = self.loader.load_module_with(&image, &BeforeRunning).expect_err("it is made to fail at the latest");
        let after = Arena::get().unwrap().usage().map(|stripe| (stripe.used, stripe.free));
        assert_eq!(after, before, "the arena after {error}");
        assert!(self.loader.modules().is_empty(), "the registry after {error}");
        error
    }
}

fn objects() -> Vec<(String, Vec<u8>)> {
    let object = |name: &str, flags: &[&str]| {
        let path = Fixture::new(name).object(Compiler::Cc, flags).unwrap();
        (format!("{name} {}", flags.join(" ")), fs::read(path).unwrap())
    };
    vec![
        object("greet", &["-O2", "-fPIC"]),
        object("matrix", &["-O2"]),
        object("params_all", &["-O2", "-fPIC"]),
        object("ctors_c", &["-O2", "-mcmodel=large", "-fPIC"]),
    ]
}

/// A 16-, 32- or 64-bit field of the file.
fn set(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
}

#[test]
fn whole_objects_get_as_far_as_their_text() {
    let bench = Bench::new();
    for (name, bytes) in objects() {
        let error = bench.load(&bytes);
        assert!(matches!(*error.error, Error::Injected), "{name}: {error}");
        assert_eq!(error.stage, Stage::Publish);
    }
}

#[test]
fn sections_of_any_size_are_too_large_whatever_the_limit() {
    let section = |name: &str, size: u64| format!(".section {name},\"aw\",@nobits\n.skip {size:#x}\n");
    let cases = [
        section(".bss", (1 << 47) + 1),
        section(".bss", 1 << 62) + &section(".data..ro_after_init", 1 << 62) + &section(".init.data", (1 << 63) - 1),
        section(".data..ro_after_init", (1 << 63) - 1) + &section(".data..ro_after_init.more", (1 << 63) - 1),
    ];
    let loader = Loader::new(Arc::new(Everything), Policy { size_limit: u64::MAX, ..Policy::default() }).unwrap();
    for text in cases {
        let object = object_from_text("large", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
        let bytes = fs::read(object).unwrap();
        // SAFETY: no code of the image runs: see `BeforeRunning`.
        let image = unsafe { Image::trusted(&bytes[..]) };
        let error = loader.load_module_with(&image, &BeforeRunning).unwrap_err();
        assert!(
            matches!(*error.error, Error::Object(ObjectError::TooLarge { limit: 0x8000_0000_0000, .. })),
            "{text}: {error}"
        );
        assert!(matches!(Inspection::of(&bytes, "large", u64::MAX), Err(ObjectError::TooLarge { .. })), "{text}");
    }
}

#[test]
fn an_init_or_exit_that_is_no_function_is_refused() {
    let bench = Bench::new();
    for name in ["init_module", "cleanup_module"] {
        for place in [".data\n", ".comm {},8,8\n", ".text\n.set {}, .text + 0x10000\n"] {
            let mut text = format!(".globl {name}\n{}", place.replace("{}", name));
            if place == ".data\n" {
                text += &format!("{name}: .quad 0\n");
            }
            let object = object_from_text("no_function", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
            let error = bench.load(&fs::read(object).unwrap());
            let expected = format!("symbol \"{name}\": it would be called, and is no function of this module");
            assert_eq!((error.stage, sentence(&*error.error)), (Stage::Form, expected), "{text}");
        }
    }
}

#[test]
fn two_relocations_of_one_place_are_refused_without_an_address() {
    let text = ".globl f\nf: ret\n.data\n.quad 0\n.reloc .data, R_X86_64_64, f\n.reloc .data, R_X86_64_64, f\n";
    let object = object_from_text("twice", Language::Assembler, text, Compiler::Cc, &[]).unwrap();
    let error = Bench::new().load(&fs::read(object).unwrap());
    assert_eq!(
        sentence(&error),
        "mutant: relocate: R_X86_64_64 at .data+0x0 against \"f\": its place must hold [00, 00, 00, 00, 00, 00, 00, 00] \
         before the relocation is applied; the file, or another relocation, has written other bytes there"
    );
}

#[test]
fn a_file_cut_off_at_any_byte_is_refused() {
    let bench = Bench::new();
    for (name, bytes) in objects() {
        for len in 0..bytes.len() {
            let error = bench.load(&bytes[..len]);
            assert_eq!(error.stage, Stage::Validate, "{name}, {len} of {} bytes: {error}", bytes.len());
        }
    }
}

#[test]
fn every_field_of_the_elf_header_is_looked_at() {
    let bench = Bench::new();
    let (_, bytes) = objects().remove(0);
    // Where each field begins, as in the ELF specification; the padding of e_ident (9 to 15) means nothing.
    let fields = [
        (0, "no ELF file"),
        (4, "32-bit"),
        (5, "big-endian"),
        (6, "e_version"),
        (7, "EI_OSABI"),
        (8, "EI_ABIVERSION"),
        (16, "e_type"),
        (18, "not x86-64"),
        (20, "e_version"),
        (24, "e_entry"),
        (32, "e_phoff"),
        (40, "e_shoff"),
        (48, "e_flags"),
        (52, "e_ehsize"),
        (54, "e_phentsize"),
        (56, "e_phnum"),
        (58, "e_shentsize"),
        (60, "e_shnum"),
        (62, "e_shstrndx"),
    ];
    for (at, expected) in fields {
        let mut mutant = bytes.clone();
        mutant[at] ^= 0x7f;
        let error = sentence(&bench.load(&mutant));
        assert!(error.contains(expected), "byte {at}: {error}");
    }
}

#[test]
fn other_kinds_of_files_are_named() {
    let bench = Bench::new();
    let (_, object) = objects().remove(0);
    let with = |at: usize, field: &[u8]| {
        let mut bytes = object.clone();
        set(&mut bytes, at, field);
        bytes
    };
    let cases: [(Vec<u8>, &str); 11] = [
        (with(16, &3_u16.to_le_bytes()), "this is a shared object; use dlopen"),
        (with(16, &2_u16.to_le_bytes()), "this is an executable"),
        (with(16, &4_u16.to_le_bytes()), "this is a core dump"),
        (with(18, &3_u16.to_le_bytes()), "this is i386"),
        (with(18, &183_u16.to_le_bytes()), "this is AArch64"),
        (b"!<arch>\nfoo".to_vec(), "this is a damaged archive"),
        (b"\x1f\x8b\x08".to_vec(), "this is gzip-compressed"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "this is zstd-compressed"),
        (b"BC\xc0\xde".to_vec(), "this is LLVM bitcode"),
        (Vec::new(), "this is an empty file"),
        (b"hello".to_vec(), "this is no ELF file at all"),
    ];
    for (bytes, expected) in cases {
        let error = sentence(&bench.load(&bytes));
        assert!(error.contains(expected), "{expected:?}: {error}");
    }
}

/// Returns the offset of the first section header whose type `wanted` accepts.
fn section_header(bytes: &[u8], wanted: impl Fn(u32) -> bool) -> usize {
    let table = word(bytes, 40);
    let kind = |at: usize| u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
    (1..).map(|section| table + 64 * section).find(|&at| wanted(kind(at))).unwrap()
}

#[test]
fn wrong_fields_of_sections_and_symbols_are_named() {
    let bench = Bench::new();
    let (_, object) = objects().remove(0);
    let symtab = section_header(&object, |kind| kind == 2);
    let symbols = word(&object, symtab + 24);
    let bits = section_header(&object, |kind| kind == 1);
    let rela = section_header(&object, |kind| kind == 4);
    let relocations = word(&object, rela + 24);
    let cases: [(usize, &[u8], &str); 14] = [
        (bits, &u32::MAX.to_le_bytes(), "sh_name is 0xffffffff: lies behind the string table"),
        (bits + 24, &u64::MAX.to_le_bytes(), "sh_offset is 0xffffffffffffffff: lies outside the file"),
        (bits + 32, &u64::MAX.to_le_bytes(), "sh_size is 0xffffffffffffffff: reaches beyond the file's end"),
        (bits + 48, &3_u64.to_le_bytes(), "sh_addralign is 0x3: no power of two up to 2 MiB"),
        (bits + 48, &(1_u64 << 40).to_le_bytes(), "sh_addralign is 0x10000000000: no power of two up to 2 MiB"),
        (symtab + 40, &9999_u32.to_le_bytes(), "sh_link is 0x270f: there is no such section"),
        (symtab + 56, &23_u64.to_le_bytes(), "sh_entsize is 0x17: not the size of an entry"),
        (symbols + 24, &u32::MAX.to_le_bytes(), "symbol 1: st_name is 0xffffffff: lies behind the string table"),
        (symbols + 24 + 6, &9999_u16.to_le_bytes(), "symbol 1: st_shndx is 0x270f: there is no such section"),
        (symbols + 24 + 6, &0xff20_u16.to_le_bytes(), "only a module whose .modinfo says livepatch=Y has symbols"),
        (rela + 44, &9999_u32.to_le_bytes(), "sh_info is 0x270f: there is no such section"),
        (rela + 40, &1_u32.to_le_bytes(), "sh_link is 0x1: not the symbol table"),
        (relocations, &u64::MAX.to_le_bytes(), "do not lie within a section"),
        (relocations + 12, &9999_u32.to_le_bytes(), "there is no symbol 9999"),
    ];
    for (at, field, expected) in cases {
        let mut mutant = object.clone();
        set(&mut mutant, at, field);
        let error = sentence(&bench.load(&mutant));
        assert!(error.contains(expected), "{expected:?}: {error}");
    }
    // A field of four bytes that begins at a section's last byte.
    let target = u32::from_le_bytes(object[rela + 44..rela + 48].try_into().unwrap());
    let size = word(&object, word(&object, 40) + 64 * usize::try_from(target).unwrap() + 32);
    let mut mutant = object.clone();
    set(&mut mutant, relocations, &(size - 1).to_le_bytes());
    let error = sentence(&bench.load(&mutant));
    assert!(error.contains("do not lie within a section of"), "{error}");
}

#[test]
fn more_memory_than_the_limit_is_refused() {
    let bench = Bench::new();
    let (_, object) = objects().remove(1);
    let nobits = section_header(&object, |kind| kind == 8);
    for size in [1_u64 << 31, 1 << 40, u64::MAX] {
        let mut mutant = object.clone();
        set(&mut mutant, nobits + 32, &size.to_le_bytes());
        let error = bench.load(&mutant);
        assert!(
            matches!(*error.error, Error::Object(ObjectError::TooLarge { limit: 0x4000_0000, .. })),
            "{size:#x}: {error}"
        );
    }
}

#[test]
fn sections_that_share_bytes_are_refused() {
    let bench = Bench::new();
    let (_, object) = objects().remove(1);
    let first = section_header(&object, |kind| kind == 1);
    let other = (first + 64..)
        .step_by(64)
        .find(|&at| object[at + 4] == 1 && object[at + 8] & 2 != 0 && word(&object, at + 32) > 8);
    let other = other.unwrap();
    let mut mutant = object.clone();
    set(&mut mutant, other + 24, &word(&object, first + 24).to_le_bytes());
    let error = sentence(&bench.load(&mutant));
    assert!(error.contains("overlaps the contents of another section"), "{error}");
}

/// Changes every byte of the tables, and a part of all other bytes, in three ways: nothing panics and nothing is left.
#[test]
fn changed_bytes_never_do_more_than_fail() {
    let bench = Bench::new();
    let mut refused = 0;
    let mut mutants = 0;
    for (_, object) in objects() {
        let table = word(&object, 40);
        let mut mutant = object.clone();
        for at in (0..object.len()).filter(|at| at % 7 == 0 || *at >= table || *at < 64) {
            for byte in [object[at] ^ 1, object[at] ^ 0x80, 0xff] {
                mutant[at] = byte;
                let _ = Inspection::of(&mutant, "mutant", 1 << 30);
                let _ = FunctionBytes::of(&mutant, "add", 1 << 30);
                let error = bench.load(&mutant);
                refused += u32::from(!matches!(*error.error, Error::Injected));
                mutants += 1;
            }
            mutant[at] = object[at];
        }
    }
    assert!(mutants > 10_000 && refused > mutants / 10, "{refused} of {mutants} were refused");
}
