//! The limits of a field: for each row narrower than 64 bits the smallest and the largest value that ld accepts, and
//! their neighbours, which ld refuses. This crate must accept and refuse the same values, and write the same bytes.

use modload_relocs::{ROWS, RelocAdvice, RelocError, RelocField, RelocFormula, RelocRow};

use crate::module::Module;
use crate::tools::{Layout, assemble, link};

const PLACE: u64 = 0x10_0008;
const SYMBOL: u64 = 0x20_0000;
const GOT: u64 = 0x30_0000;
/// The slot after the three that ld reserves once an object refers to `_GLOBAL_OFFSET_TABLE_`.
const SLOT: u64 = GOT + 24;
const SIZE: u64 = 0x20;

/// Returns the value of a row in [`source`] with addend 0.
fn base(row: &RelocRow) -> i64 {
    let of = |to: u64, from: u64| to.wrapping_sub(from).cast_signed();
    match row.value {
        RelocFormula::Nothing | RelocFormula::Refused(_) => unreachable!("{} computes nothing", row.name),
        RelocFormula::Symbol => of(SYMBOL, 0),
        RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace => of(SYMBOL, PLACE),
        RelocFormula::SymbolMinusGot => of(SYMBOL, GOT),
        RelocFormula::SlotMinusPlace => of(SLOT, PLACE),
        RelocFormula::SlotMinusGot => of(SLOT, GOT),
        RelocFormula::GotMinusPlace => of(GOT, PLACE),
        RelocFormula::Size => of(SIZE, 0),
        other => unreachable!("{other:?} is for thread-local variables"),
    }
}

/// Returns one relocation at offset 8 of `.text`, with an addend that results in the wanted value. Every place is zero.
fn source(row: &RelocRow, addend: i64) -> String {
    let name = row.name;
    let symbol = if matches!(row.value, RelocFormula::GotMinusPlace) { "_GLOBAL_OFFSET_TABLE_" } else { "symbol" };
    format!(
        ".text; .globl _start; _start: .quad 0, 0; .reloc 8, {name}, {symbol}+{addend:#x}
         .section .anchor, \"a\"; .quad _GLOBAL_OFFSET_TABLE_
         .section .symbol, \"aw\"; .globl symbol; .type symbol, @object; .size symbol, {SIZE}; symbol: .zero {SIZE}\n"
    )
}

#[test]
fn a_field_ends_where_ld_says_it_does() {
    let sections = [(".text", PLACE - 8), (".anchor", 0x18_0000), (".symbol", SYMBOL), (".got", GOT)];
    let layout = Layout::new("-static --no-relax", &sections, &[]);
    let mut cases = 0;
    for row in ROWS.iter().filter(|row| row.field != RelocField::Nowhere && !row.value.is_thread_local()) {
        let (min, max) = row.field.range();
        for (value, fits) in [
            (min.wrapping_sub(1), false),
            (min, true),
            (-1, min < 0),
            (0, true),
            (max, true),
            (max.wrapping_add(1), false),
        ] {
            let fits = fits || row.field == RelocField::I64;
            let (name, addend) = (row.name, value.wrapping_sub(base(row)));
            let object = assemble(&source(row, addend));
            let theirs = link(&object, &layout);
            let reserved =
                if matches!(row.value, RelocFormula::SlotMinusPlace | RelocFormula::SlotMinusGot) { 3 } else { 0 };
            let ours = Module::new(&object, &layout).relocate(reserved);
            match (ours, theirs) {
                (Ok(ours), Ok(theirs)) => {
                    assert!(fits, "{name} with {value:#x} should not fit");
                    assert_eq!(ours.sections[".text"], theirs[".text"], "{name} with {value:#x}");
                }
                (Err(ours), Err(theirs)) => {
                    assert!(!fits, "{name} with {value:#x} should fit");
                    assert!(theirs.contains("truncated") && theirs.contains(name), "{theirs}");
                    let RelocError::Overflow { beyond, .. } = ours else { panic!("{ours}") };
                    let far = if value == -1 || min == 0 && value < 0 { u64::MAX - 0xffff_ffff } else { 1 };
                    assert_eq!(beyond, far, "{name} with {value:#x}: {ours}");
                }
                (Ok(_), Err(theirs)) => panic!("{name} with {value:#x}: we take what ld refuses: {theirs}"),
                (Err(ours), Ok(_)) => panic!("{name} with {value:#x}: ld takes what we refuse: {ours}"),
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 23 * 6);
}

/// An instruction whose operand is exactly at the end of its reach, and one byte beyond.
struct Far {
    instruction: &'static str,
    /// The addresses of `.text` and of the instruction's operand: the last pair that fits, and the first pair that does
    /// not.
    fits: (u64, u64),
    misses: (u64, u64),
    advice: RelocAdvice,
}

#[test]
fn an_instruction_reaches_as_far_as_ld_says_it_does() {
    const TEXT: u64 = 0x1_0010_0000;
    /// The limit for an instruction of five, six or seven bytes at the start of the text.
    const REACH: u64 = TEXT + 0x7fff_ffff;
    const BACK: u64 = TEXT - 0x8000_0000;
    let far = |instruction, fits, misses, advice| Far { instruction, fits, misses, advice };
    let pic = RelocAdvice::PositionIndependent;
    for case in [
        far("call far", (TEXT, REACH + 5), (TEXT, REACH + 6), pic),
        far("call far", (TEXT, BACK + 5), (TEXT, BACK + 4), pic),
        far("jne far", (TEXT, REACH + 6), (TEXT, REACH + 7), pic),
        far("lea far(%rip), %rax", (TEXT, REACH + 7), (TEXT, REACH + 8), pic),
        far("lea far(%rip), %rax", (TEXT, BACK + 7), (TEXT, BACK + 6), pic),
        far("mov $far, %eax", (TEXT, 0xffff_ffff), (TEXT, 0x1_0000_0000), pic),
        far("mov $far, %rax", (TEXT, 0x7fff_ffff), (TEXT, 0x8000_0000), pic),
        far("mov $far, %rax", (TEXT, 0xffff_ffff_8000_0000), (TEXT, 0xffff_ffff_7fff_ffff), pic),
    ] {
        for ((text, addr), fits) in [(case.fits, true), (case.misses, false)] {
            let layout = Layout::new("-static", &[(".text", text)], &[("far", addr)]);
            let object = assemble(&format!(".text; .globl _start; _start: {}\n", case.instruction));
            let theirs = link(&object, &layout);
            // There is no PLT here: for the plan the symbol is defined, so that a call must reach it.
            let ours = Module::new(&object, &layout).without_plt().relocate(0);
            agree(&format!("{} at {addr:#x}", case.instruction), ours, theirs, fits, case.advice);
        }
    }
}

#[test]
fn a_slot_is_within_reach_as_long_as_ld_says_it_is() {
    // Slots are multiples of 8, so the text moves by one byte instead.
    for instruction in ["mov far@GOTPCREL(%rip), %rax", "call *far@GOTPCREL(%rip)", "add far@GOTPCREL(%rip), %rax"] {
        let length = if instruction.starts_with("call") { 6 } else { 7 };
        let got = 0x2_0000_0000;
        let forward = got + 24 - 0x7fff_ffff - length;
        let backward = got + 24 + 0x8000_0000 - length;
        for (text, fits) in [(forward, true), (forward - 1, false), (backward, true), (backward + 1, false)] {
            let sections = [(".text", text), (".got", got)];
            let layout = Layout::new("-static --no-relax", &sections, &[("far", 0x7fff_1234_5678)]);
            let object = assemble(&format!(".text; .globl _start; _start: {instruction}\n"));
            let theirs = link(&object, &layout);
            let ours = Module::new(&object, &layout).relocate(3);
            agree(&format!("{instruction} at {text:#x}"), ours, theirs, fits, RelocAdvice::Nearer);
        }
    }
}

#[test]
fn an_instruction_is_relaxed_as_long_as_ld_can_do_it() {
    const TEXT: u64 = 0x1_0010_0000;
    for (instruction, length) in [
        ("mov far@GOTPCREL(%rip), %rax", 7),
        ("mov far@GOTPCREL(%rip), %eax", 6),
        ("call *far@GOTPCREL(%rip)", 6),
        ("jmp *far@GOTPCREL(%rip)", 5),
    ] {
        let ends = TEXT + length;
        for (addr, fits) in [
            (ends + 0x7fff_ffff, true),
            (ends + 0x8000_0000, false),
            (ends - 0x8000_0000, true),
            (ends - 0x8000_0001, false),
        ] {
            let sections = [(".text", TEXT), (".far", addr), (".got", TEXT + 0x1000)];
            let code =
                format!(".text; .globl _start; _start: {instruction}\n.section .far, \"ax\"; .globl far; far: ret\n");
            let object = assemble(&code);
            let name = format!("{instruction} with the symbol at {addr:#x}");
            let layout = Layout::new("-pie --no-dynamic-linker", &sections, &[]);
            let relaxed = link(&object, &layout);
            let theirs = match &relaxed {
                Ok(relaxed) => relaxed.clone(),
                // ld decides before it knows the distance and cannot go back, and reports this. This crate uses the
                // slot, as ld does when told not to relax.
                Err(said) => {
                    assert!(said.contains("relink with --no-relax"), "{name}: {said}");
                    let layout = Layout::new("-pie --no-dynamic-linker --no-relax", &sections, &[]);
                    link(&object, &layout).unwrap()
                }
            };
            assert_eq!(relaxed.is_ok(), fits, "{name}");
            let ours = Module::new(&object, &layout).relocate(3).unwrap();
            assert_eq!(ours.counts.relaxed, u32::from(fits), "{name}");
            assert_eq!(ours.sections[".text"], theirs[".text"], "{name}");
        }
    }
}

type Linked = Result<std::collections::BTreeMap<String, Vec<u8>>, String>;

fn agree(
    name: &str,
    ours: Result<crate::module::Relocated, RelocError>,
    theirs: Linked,
    fits: bool,
    advised: RelocAdvice,
) {
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert!(fits, "{name} should not fit");
            assert_eq!(ours.sections[".text"], theirs[".text"], "{name}");
        }
        (Err(ours), Err(theirs)) => {
            assert!(!fits, "{name} should fit");
            assert!(theirs.contains("truncated"), "{name}: {theirs}");
            let RelocError::Overflow { beyond: 1, advice, .. } = ours else { panic!("{name}: {ours}") };
            assert_eq!(advice, advised, "{name}");
        }
        (Ok(_), Err(theirs)) => panic!("{name}: we take what ld refuses: {theirs}"),
        (Err(ours), Ok(_)) => panic!("{name}: ld takes what we refuse: {ours}"),
    }
}
