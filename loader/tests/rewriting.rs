//! Code as rewritten for a processor, compared with GNU as's encoding of the expected instructions.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, OpKind};
use modload_alternatives::Features;
use modload_edit::Addr;
use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use modload_loader::{Kallsyms, Machine, MemoryImage, Placement, PrepareError, sentence};
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSymbol};

const BASE: u64 = 0x3fff_0000;
const THUNKS: u64 = 0x4800_0000;
const RETURN: u64 = 0x4810_0000;

/// Returns an object's image for a processor with these features, each section at a separate address.
fn image(object: &[u8], features: &str, facts: &[&str]) -> Result<MemoryImage, PrepareError> {
    let file = ElfFile64::<object::Endianness>::parse(object).unwrap();
    let sections = file.sections().zip(1_u64..);
    let addresses: HashMap<String, Addr> = sections
        .map(|(section, number)| (section.name().unwrap().to_owned(), Addr::new(BASE + 0x1_0000 * number)))
        .filter(|(name, _)| !name.starts_with(".rela"))
        .collect();
    let thunks = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11"];
    let mut symbols = format!("{THUNKS:x} T __x86_indirect_thunk_array\n{RETURN:x} T __x86_return_thunk\n");
    symbols.push_str("40200000 D pv_ops\n40310000 T _paravirt_nop\n40320000 T __fentry__\n");
    for (number, name) in (0_u64..).zip(thunks) {
        symbols.push_str(&format!("{:x} T __x86_indirect_thunk_{name}\n", THUNKS + 32 * number));
    }
    let symbols = Kallsyms::parse(symbols.as_bytes()).unwrap();
    let mut machine = Machine::new(Arc::new(symbols), Features::named(features).unwrap());
    for fact in facts {
        machine.take_fact(&fact.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let placement = Placement { bytes: object, addresses: &addresses, percpu: None, size_limit: 1 << 20 };
    MemoryImage::of(&placement, &machine, |_| Ok(()), |_| {})
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Fixture::new(name).object(Compiler::Cc, &["-fPIC"]).unwrap()).unwrap()
}

/// Returns GNU as's encoding of these instructions at `at`; `symbols` are known.
fn assembled(text: &str, at: u64, symbols: &HashMap<String, u64>) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.s"), format!(".text\n{text}\n")).unwrap();
    let run = |command: &mut Command| {
        let output = command.current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("as").args(["-o", "a.o", "a.s"]));
    let known = symbols.iter().filter(|(name, _)| !name.is_empty() && text.contains(name.as_str()));
    let known = known.map(|(name, addr)| format!("--defsym={name}={addr:#x}"));
    run(Command::new("ld").args(["-e0", &format!("-Ttext={at:#x}"), "-o", "a.out", "a.o"]).args(known));
    let linked = fs::read(dir.path().join("a.out")).unwrap();
    let linked = ElfFile64::<object::Endianness>::parse(&*linked).unwrap();
    linked.section_by_name(".text").unwrap().data().unwrap().to_vec()
}

/// Compares the beginning of each function with the expected code.
fn check(object: &[u8], features: &str, facts: &[&str], expected: &[(&str, &str)]) {
    let image = image(object, features, facts).unwrap();
    let file = ElfFile64::<object::Endianness>::parse(object).unwrap();
    let text = image.sections.iter().find(|section| section.name == ".text").unwrap();
    let mut symbols: HashMap<String, u64> = file
        .symbols()
        .filter(|symbol| symbol.section_index() == file.section_by_name(".text").map(|section| section.index()))
        .map(|symbol| (symbol.name().unwrap().to_owned(), text.at.get() + symbol.address()))
        .collect();
    let known = [("return_thunk", RETURN + 0x1000), ("native", 0x4030_0000), ("pv_ops", 0x4020_0000)];
    symbols.extend(known.map(|(name, at)| (name.to_owned(), at)));
    let rodata = image.sections.iter().find(|section| section.name == ".rodata");
    rodata.map(|rodata| symbols.insert("value".into(), rodata.at.get()));
    for (function, wanted) in expected {
        let at = symbols[*function];
        let start = usize::try_from(at - text.at.get()).unwrap();
        let wanted = assembled(wanted, at, &symbols);
        let found = &text.bytes[start..start + wanted.len()];
        assert_eq!(
            modload_edit::disassembled(Addr::new(at), found),
            modload_edit::disassembled(Addr::new(at), &wanted),
            "{function} for {features:?}"
        );
        assert_eq!(found, wanted, "{function} for {features:?}");
    }
    is_code(&text.bytes, text.at.get());
}

/// Whole instructions, and no branch into the middle of one.
fn is_code(bytes: &[u8], at: u64) {
    let mut starts = Vec::new();
    let mut targets = Vec::new();
    for instruction in &mut Decoder::with_ip(64, bytes, at, DecoderOptions::NONE) {
        assert!(!instruction.is_invalid(), "at {:#x}", instruction.ip());
        starts.push(instruction.ip());
        if instruction.op_count() != 0 && instruction.op0_kind() == OpKind::NearBranch64 {
            targets.push(instruction.near_branch_target());
        }
    }
    let end = at + u64::try_from(bytes.len()).unwrap();
    for target in targets.into_iter().filter(|target| (at..end).contains(target)) {
        assert!(starts.binary_search(&target).is_ok(), "a branch to {target:#x}, within an instruction");
    }
}

#[test]
fn three_processors_three_texts() {
    let object = fixture("alternatives");
    let without = [
        ("alt_present", "movl $1, %eax; ret"),
        ("alt_not_present", "movl $2, %eax; ret"),
        ("alt_nothing", "movl $7, %eax; xorl %eax, %eax; incl %eax; incl %eax; ret"),
        ("alt_twice", "movl $1, %eax; ret"),
        ("alt_jump_far", ".byte 0xeb, trap - . - 1; .nops 3; ud2"),
    ];
    check(&object, "", &[], &without);
    let with_ia64 = [
        ("alt_present", "movl $1, %eax; ret"),
        ("alt_absent", "movl $2, %eax; ret"),
        ("alt_not_absent", "movl $1, %eax; ret"),
        ("alt_not_present", "movl $2, %eax; ret"),
    ];
    check(&object, "IA64", &[], &with_ia64);
    let with_fpu = [
        ("alt_present", "movl $2, %eax; ret"),
        ("alt_absent", "movl $1, %eax; ret"),
        ("alt_not_present", "movl $1, %eax; ret"),
        ("alt_not_absent", "movl $2, %eax; ret"),
        ("alt_nothing", "movl $7, %eax; .nops 6; ret"),
        ("alt_padded", "movl $3, %eax; .nops 8; .nops 2; ret"),
        ("alt_twice", "movl $3, %eax; ret"),
        ("alt_call", "call forty_two; ret"),
        ("alt_jump_short", "movl $5, %eax; .byte 0xeb, back - . - 1; .nops 3; ud2; ret"),
        ("alt_jump_far", "jmp.d32 near; ud2"),
        ("alt_rip", "movl value(%rip), %eax; ret"),
        ("alt_short_inside", "movl $11, %eax; jmp 1f; ud2; 1: ret"),
    ];
    check(&object, "FPU", &[], &with_fpu);
}

#[test]
fn branches_and_returns_go_through_thunks_where_the_features_want_them() {
    let object = fixture("thunks");
    let plain = [
        (
            "thunk_call",
            "leaq twice_and_one(%rip), %rbx; xchgq %rbx, %rax; pushq %rbx; call *%rax; .nops 3; popq %rbx; ret",
        ),
        ("thunk_jump", "leaq twice_and_one(%rip), %rcx; jmp *%rcx; int3; .nops 2"),
        ("thunk_r11", "leaq twice_and_one(%rip), %r11; jmp *%r11; int3; nop"),
        (
            "thunk_conditional",
            "leaq twice_and_one(%rip), %rdx; movl $1, %eax; testl %edi, %edi; je 1f; jmp *%rdx; int3; nop; 1: ret",
        ),
        ("thunk_return", "movl $3, %eax; ret; int3; int3; int3; int3"),
    ];
    check(&object, "", &[], &plain);
    let with_lfence = [
        ("thunk_jump", "leaq twice_and_one(%rip), %rcx; lfence; jmp *%rcx"),
        // Too long: unchanged.
        ("thunk_r11", "leaq twice_and_one(%rip), %r11; .byte 0xe9; .long 0x48000160 - . - 4"),
    ];
    check(&object, "RETPOLINE RETPOLINE_LFENCE", &[], &with_lfence);
    let with_thunks = [
        ("thunk_jump", "leaq twice_and_one(%rip), %rcx; .byte 0xe9; .long 0x48000020 - . - 4"),
        ("thunk_return", "movl $3, %eax; jmp.d32 return_thunk"),
    ];
    check(&object, "RETPOLINE RETHUNK", &["return_thunk 0x48101000"], &with_thunks);
}

#[test]
fn calls_through_a_table_and_function_entries_are_what_as_makes_of_them() {
    let text = ".text\n.globl site\nsite: call *pv_ops+8*1(%rip)\n1: call *pv_ops+8*2(%rip)\n2: call *pv_ops+8*3(%rip)\n\
                ret\nentry: call __fentry__\nret\nfar: .byte 0x67\ncall __fentry__\nret\nnops: nop\nnop\nnop\nnop\n\
                nop\nret\n.section .parainstructions,\"a\"\n.quad site\n.byte 1, 6\n.zero 6\n.quad 1b\n.byte 2, 6\n\
                .zero 6\n.quad 2b\n.byte 3, 6\n.zero 6\n.section __mcount_loc,\"a\"\n.quad entry, far\n\
                .section __patchable_function_entries,\"a\"\n.quad nops\n";
    let object = object_from_text("table", Language::Assembler, text, Compiler::Cc, &[]).unwrap();
    let facts = ["pv_op 1 0x40300000", "pv_op 2 _paravirt_nop"];
    let expected = [
        ("site", "call native; nop; .nops 6; call *pv_ops+24(%rip); ret"),
        ("entry", ".nops 5; ret"),
        ("far", ".nops 6; ret"),
        ("nops", ".nops 5; ret"),
    ];
    check(&fs::read(object).unwrap(), "", &facts, &expected);
}

#[test]
fn locks_go_on_one_processor_and_endbrs_that_nobody_needs_go() {
    let object = fixture("locks");
    let image = |facts: &[&str]| {
        let image = image(&object, "", facts).unwrap();
        image.sections.into_iter().find(|section| section.name == ".text").unwrap().bytes
    };
    let (several, one) = (image(&["smp 1"]), image(&["smp 0"]));
    assert_eq!(several[..5], [0x66, 0x0f, 0x1f, 0x00, 0xf0]); // nopw (%rax); lock
    assert_eq!(one[..5], [0x66, 0x0f, 0x1f, 0x00, 0x3e]); // nopw (%rax); ds
    assert_eq!(several[5..], one[5..]);
}

/// Returns the error for a text and one record for the beginning of the text.
fn refused(text: &str, record: &str) -> String {
    let text = format!(
        ".text\n.globl site\nsite:\n{text}\n.section .altinstr_replacement,\"ax\"\nreplacement: movl $2,%eax\n\
         long: movabs $2,%rax\ncut: .byte 0xb8\n.section .altinstructions,\"a\"\n{record}\n.section .retpoline_sites,\"a\"\n"
    );
    let object = object_from_text("bad", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
    sentence(&image(&fs::read(object).unwrap(), "FPU", &[]).unwrap_err())
}

#[test]
fn bad_records_are_refused_by_section_index_and_disassembly() {
    let alternative = |site: &str, replacement: &str, feature: u32, site_len: u32, len: u32| {
        format!(".long {site} - ., {replacement} - .\n.word {feature}\n.byte {site_len}, {len}")
    };
    let text = "movl $1,%eax\nret";
    for (record, why) in [
        (alternative("site", "replacement", 0, 4, 4), "its site of 4 bytes ends within an instruction"),
        (alternative("site", "long", 0, 5, 10), "its replacement of 10 bytes is longer than its site of 5"),
        (alternative("site", "replacement", 0, 6, 4), "its replacement ends within an instruction"),
        (alternative("site", "cut", 0, 5, 1), "its replacement ends within an instruction"),
        (alternative("site", "cut", 0, 5, 2), "its replacement of 2 bytes is not within text"),
        (alternative("site + 2", "replacement", 0, 5, 5), "its site of 5 bytes is not within text"),
        (alternative("site - 4096", "replacement", 0, 5, 5), "its site of 5 bytes is not within text"),
        (alternative("0b", "replacement", 0, 5, 5).replace("0b - .", "0"), "its site of 5 bytes is not within text"),
        (alternative("site", "replacement", 24 * 32, 5, 5), "there is no feature number 24*32+0"),
        (alternative("site", "replacement", 10, 5, 5), "there is no feature number 0*32+10"),
    ] {
        let said = refused(text, &record);
        assert!(said.starts_with("section \".altinstructions\": alternative 0 of section "), "{said}");
        assert!(said.contains(why), "{why}: {said}");
    }
    let part = refused(text, ".long 0");
    assert_eq!(
        part,
        "section \".altinstructions\": it has 4 bytes, which is no whole number of records of 12: the last 4 would be \
         passed over"
    );
    let said = refused(text, &alternative("site", "replacement", 0, 4, 4));
    assert!(said.contains("are [b8, 01, 00, 00] ("), "{said}");
}

#[test]
fn sites_of_another_kind_are_refused() {
    let cases = [
        (
            ".retpoline_sites",
            ".long",
            "movl $1, %eax",
            "its site is not a call, a jump or a conditional jump to a thunk",
        ),
        (".retpoline_sites", ".long", "call site", "is no thunk"),
        (".return_sites", ".long", "ret; .nops 8", "its site is not a jump to __x86_return_thunk"),
        (".ibt_endbr_seal", ".long", "nop; nop; nop; nop", "its site is not endbr64; the bytes at "),
        (".smp_locks", ".long", "nop", "its site is not a lock prefix"),
        ("__mcount_loc", ".quad", "movl $1, %eax", "its site is not a call of __fentry__"),
        ("__patchable_function_entries", ".quad", "inc %eax; ret", "its site is not a call of __fentry__ or a NOP"),
    ];
    for (section, unit, text, why) in cases {
        let value = if unit == ".quad" { "site" } else { "site - ." };
        let text = format!(".text\n.globl site\nsite: {text}\nret\n.section {section},\"a\"\n{unit} {value}\n");
        let object = object_from_text("bad", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
        let said = sentence(&image(&fs::read(object).unwrap(), "", &[]).unwrap_err());
        assert!(said.contains(section) && said.contains(why), "{section}: {said}");
    }
}

/// A call through an operations table, with a record for the call. The relocation is that of the call's operand.
const PARAVIRT: &str = ".text\n.globl site\nsite: call *pv_ops+8(%rip)\nret\n.section .parainstructions,\"a\"\n.quad site\n\
                        .byte 1, 6\n.zero 6\n";

/// kpatch#580: a relocation of a live patch, applied late, onto a site that paravirt has rewritten. This case is the
/// origin of the rule that late relocations must not write to final places.
#[test]
fn kpatch_580() {
    let object = object_from_text("kpatch_580", Language::Assembler, PARAVIRT, Compiler::Cc, &[]).unwrap();
    let object = fs::read(object).unwrap();
    let symbols = Kallsyms::parse(b"41000000 D pv_ops\n42000000 T native\n").unwrap();
    let mut machine = Machine::new(Arc::new(symbols), Features::NONE);
    machine.take_fact(&["pv_op", "1", "native"]).unwrap();
    let addresses = [(".text", 0x4000_0000), (".parainstructions", 0x4001_0000)];
    let addresses: HashMap<_, _> = addresses.map(|(name, at)| (name.to_owned(), Addr::new(at))).into();
    let placement = Placement { bytes: &object, addresses: &addresses, percpu: None, size_limit: 1 << 20 };
    let mut rela = 2_u64.to_le_bytes().to_vec(); // R_X86_64_PC32 pv_ops+0x4 at .text+0x2
    rela.extend(2_u32.to_le_bytes());
    rela.extend(0_u32.to_le_bytes());
    rela.extend(4_i64.to_le_bytes());

    // Applied early, with all other relocations, the result is read and replaced by paravirt.
    let early = MemoryImage::of(&placement, &machine, |_| Ok(()), |_| {}).unwrap();
    let text = &early.sections.iter().find(|section| section.name == ".text").unwrap().bytes;
    assert_eq!(modload_edit::disassembled(Addr::new(0x4000_0000), text), "call 0x42000000; nop; ret");

    // Applied late, the relocation would write into the middle of the replaced code.
    let late = |module: &mut modload_loader::ImageComing<'_, '_>| {
        let relas = modload_abi::Records::new(&rela).unwrap();
        let target = modload_relocs::RelocatedSection {
            section: 9,
            addr: Addr::new(0x4000_0000),
            bytes: &[0xff, 0x15, 0, 0, 0, 0, 0xc3],
            discarded: modload_relocs::OnDiscarded::Refuse,
        };
        let pv_ops = modload_relocs::RelocSymbol {
            addr: Addr::new(0x4100_0000),
            size: 0,
            kind: modload_relocs::RelocSymbolKind::External,
        };
        let slots = modload_relocs::Slots::default();
        modload_relocs::apply(&target, relas, &[pv_ops][..], &slots, module.code)
            .map(drop)
            .map_err(|error| PrepareError::Rewrite { section: ".klp.rela.vmlinux..text", error: error.into() })
    };
    let refused = sentence(&MemoryImage::of(&placement, &machine, late, |_| {}).unwrap_err());
    for part in [
        "section \".klp.rela.vmlinux..text\": ",
        "relocation 0 of section 9 would write",
        "over paravirt site 0 of section ",
        "(call 0x42000000; nop)",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

/// A place that an alternative has rewritten is not another engine's any more, unless the table says so.
#[test]
fn two_engines_on_the_same_bytes_collide() {
    let text = ".text\n.globl site\nsite: lock incl (%rdi)\nret\n.section .altinstr_replacement,\"ax\"\n\
                replacement: lock decl (%rdi)\n.section .altinstructions,\"a\"\n.long site - ., replacement - .\n\
                .word 0\n.byte 3, 3\n.section .smp_locks,\"a\"\n.balign 4\n.long site - .\n";
    let object = object_from_text("collision", Language::Assembler, text, Compiler::Cc, &[]).unwrap();
    let object = fs::read(object).unwrap();
    let refused = sentence(&image(&object, "FPU", &["smp 0"]).unwrap_err());
    for part in [
        "section \".smp_locks\": lock prefix 0 of section ",
        "would write [3e] at 0x",
        " over alternative 0 of section ",
        ", which wrote [f0, ff, 0f] at 0x",
        "(lock decl (%rdi))",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    // Where neither has to change anything there is nothing to collide.
    image(&object, "FPU", &["smp 1"]).unwrap();
    image(&object, "", &["smp 0"]).unwrap();
}
