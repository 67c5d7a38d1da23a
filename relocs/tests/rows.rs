//! Every row of the table by itself: the values that just fit, the first values that do not fit, and the inverse edits.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Counter, Edit, EditSet, Rejected, Sink, Window};
use modload_relocs::{
    Before, OnDiscarded, ROWS, Reason, RelocError, RelocField, RelocFormula, RelocRow, RelocSymbol, RelocSymbolKind,
    RelocatedSection, SlotPlan, Slots, apply, clear, row,
};

const TEXT: Addr = Addr::new(0x10_0000);
const GOT: Addr = Addr::new(0x30_0000);
const PLT: Addr = Addr::new(0x20_0000);
const OFFSET: u64 = 8;
const SECTION: u32 = 5;
/// The null symbol at index 0, and the symbol of the tests at index 1.
const SYMBOLS: [RelocSymbol; 2] = [
    RelocSymbol { addr: Addr::NULL, size: 0, kind: RelocSymbolKind::Absolute },
    RelocSymbol { addr: Addr::new(0x40_0000), size: 0x20, kind: RelocSymbolKind::Defined },
];

fn rela(raw: u32, offset: u64, symbol: u32, addend: i64) -> Vec<u8> {
    let mut bytes = offset.to_le_bytes().to_vec();
    bytes.extend(raw.to_le_bytes());
    bytes.extend(symbol.to_le_bytes());
    bytes.extend(addend.to_le_bytes());
    bytes
}

fn records(bytes: &[u8]) -> Records<'_, Rela> {
    Records::new(bytes).unwrap()
}

fn target(bytes: &[u8]) -> RelocatedSection<'_> {
    RelocatedSection { section: SECTION, addr: TEXT, bytes, discarded: OnDiscarded::Refuse }
}

fn slots(relas: &[u8]) -> Slots {
    let mut plan = SlotPlan::new(2);
    plan.scan(SECTION, records(relas), |_| false);
    plan.place(GOT, PLT)
}

/// Applies one relocation to the section `file`.
fn one(file: &[u8], rela: &[u8], symbol: RelocSymbol) -> Result<Vec<u8>, RelocError> {
    let mut bytes = file.to_vec();
    let symbols = [SYMBOLS[0], symbol];
    apply(&target(file), records(rela), &symbols[..], &slots(rela), &mut Window::new(TEXT, &mut bytes))?;
    Ok(bytes)
}

/// Returns the rows that write a value that does not belong to a thread-local variable. `tests/tls.rs` has the others.
fn written() -> impl Iterator<Item = &'static RelocRow> {
    ROWS.iter().filter(|row| row.field != RelocField::Nowhere && !row.value.is_thread_local())
}

/// Returns the value of a row with addend 0.
fn base(row: &RelocRow) -> i64 {
    let place = TEXT + OFFSET;
    let symbol = SYMBOLS[1].addr;
    match row.value {
        RelocFormula::Nothing | RelocFormula::Refused(_) => 0,
        RelocFormula::Symbol => symbol - Addr::NULL,
        RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace => symbol - place,
        RelocFormula::SymbolMinusGot => symbol - GOT,
        // The first slot is at the start of the GOT.
        RelocFormula::SlotMinusPlace | RelocFormula::GotMinusPlace => GOT - place,
        RelocFormula::SlotMinusGot => 0,
        RelocFormula::Size => 0x20,
        other => unreachable!("{other:?} is for thread-local variables"),
    }
}

#[test]
fn every_row_writes_what_fits_and_is_cleared_again() {
    for row in written() {
        let name = row.name;
        let (min, max) = row.field.range();
        let width = usize::from(row.field.width());
        let mut file = [0xa5; 24];
        if row.before == Before::Zeros {
            file[8..8 + width].fill(0);
        }
        for value in [min, min + 1, 0, 1, 0x12, max - 1, max] {
            let relas = rela(row.raw, OFFSET, 1, value.wrapping_sub(base(row)));
            let mut bytes = file;
            let (slots, mut plan) = (slots(&relas), EditSet::new());
            let counts =
                apply(&target(&file), records(&relas), &SYMBOLS[..], &slots, &mut Window::new(TEXT, &mut bytes))
                    .unwrap();
            assert_eq!(counts.iter().collect::<Vec<_>>(), [(name, 1)]);

            let mut expected = file;
            expected[8..8 + width].copy_from_slice(&value.to_le_bytes()[..width]);
            assert_eq!(bytes, expected, "{name} {value:#x}");

            apply(&target(&file), records(&relas), &SYMBOLS[..], &slots, &mut plan).unwrap();
            let edit = plan.iter().next().unwrap();
            assert_eq!((edit.at, edit.old, edit.new), (TEXT + OFFSET, &file[8..8 + width], &bytes[8..8 + width]));
            assert_eq!((edit.why.section, edit.why.record), (SECTION, 0));

            let again =
                clear(&target(&file), records(&relas), &SYMBOLS[..], &slots, &mut Window::new(TEXT, &mut bytes));
            assert_eq!(again.unwrap(), counts, "{name}");
            assert_eq!(bytes, file, "{name} {value:#x}");
        }
    }
}

#[test]
fn every_narrow_row_refuses_what_is_one_too_far() {
    for row in written().filter(|row| row.field.bits() < 64) {
        let (min, max) = row.field.range();
        for value in [min - 1, max + 1, i64::MIN, i64::MAX] {
            let refused =
                one(&[0; 24], &rela(row.raw, OFFSET, 1, value.wrapping_sub(base(row))), SYMBOLS[1]).unwrap_err();
            let RelocError::Overflow { site, value: shown, beyond, bits, .. } = refused else { panic!("{refused}") };
            assert_eq!((site.section, site.record, site.raw), (SECTION, 0, row.raw));
            assert_eq!((site.offset, site.symbol, bits), (OFFSET, 1, row.field.bits()));
            if value == max + 1 || value == min - 1 && min != 0 {
                assert_eq!((shown, beyond), (value.into(), 1), "{}", row.name);
            }
        }
    }
}

#[test]
fn the_six_rows_of_linux_want_zeros_and_the_others_do_not_care() {
    let mut six = Vec::new();
    for row in written() {
        let value = if row.field.range().0 == 0 { 0x12 } else { -3 };
        let relas = rela(row.raw, OFFSET, 1, i64::wrapping_sub(value, base(row)));
        match one(&[0x11; 24], &relas, SYMBOLS[1]) {
            Ok(_) => assert_eq!(row.before, Before::File, "{}", row.name),
            Err(RelocError::Rejected { source: Rejected::Mismatch { expected, found, .. }, .. }) => {
                assert!(expected.iter().all(|&byte| byte == 0) && found.iter().all(|&byte| byte == 0x11));
                six.push(row.name);
            }
            Err(other) => panic!("{other}"),
        }
    }
    let names = ["R_X86_64_64", "R_X86_64_PC32", "R_X86_64_PLT32", "R_X86_64_32", "R_X86_64_32S", "R_X86_64_PC64"];
    assert_eq!(six, names);
}

#[test]
fn a_section_is_not_relocated_twice() {
    for row in written() {
        let relas = rela(row.raw, OFFSET, 1, 0x12_i64.wrapping_sub(base(row)));
        let (slots, mut bytes) = (slots(&relas), [0; 24]);
        let mut window = Window::new(TEXT, &mut bytes);
        apply(&target(&[0; 24]), records(&relas), &SYMBOLS[..], &slots, &mut window).unwrap();
        let again = apply(&target(&[0; 24]), records(&relas), &SYMBOLS[..], &slots, &mut window).unwrap_err();
        assert!(matches!(again, RelocError::Rejected { source: Rejected::Mismatch { .. }, .. }), "{again}");
    }
}

#[test]
fn none_does_nothing_wherever_it_stands() {
    let relas = rela(0, u64::MAX, 1, i64::MIN);
    let discarded = RelocSymbol { kind: RelocSymbolKind::Discarded, ..SYMBOLS[1] };
    assert_eq!(one(&[7; 24], &relas, discarded).unwrap(), [7; 24]);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for (raw, said) in [
        (5, "R_X86_64_COPY at +0x8: only linked objects hold it, not relocatable ones"),
        (6, "R_X86_64_GLOB_DAT at +0x8: only linked objects hold it, not relocatable ones"),
        (7, "R_X86_64_JUMP_SLOT at +0x8: only linked objects hold it, not relocatable ones"),
        (8, "R_X86_64_RELATIVE at +0x8: only linked objects hold it, not relocatable ones"),
        (16, "R_X86_64_DTPMOD64 at +0x8: only linked objects hold it, not relocatable ones"),
        (36, "R_X86_64_TLSDESC at +0x8: only linked objects hold it, not relocatable ones"),
        (37, "R_X86_64_IRELATIVE at +0x8: only linked objects hold it, not relocatable ones"),
        (40, "R_X86_64_PLT32_BND at +0x8: the ABI has withdrawn it"),
        (44, "R_X86_64_CODE_4_GOTTPOFF at +0x8: instructions of the APX extension are not supported"),
        (43, "R_X86_64_CODE_4_GOTPCRELX at +0x8: instructions of the APX extension are not supported"),
        (250, "R_X86_64_GNU_VTINHERIT at +0x8: it is a hint for the garbage collection of a linker"),
        (52, "relocation number 52 at +0x8: the ABI has no such number"),
        (u32::MAX, "relocation number 4294967295 at +0x8: the ABI has no such number"),
    ] {
        let refused = one(&[0; 24], &rela(raw, OFFSET, 1, 0), SYMBOLS[1]).unwrap_err();
        assert_eq!(refused.to_string(), said);
    }
    for row in ROWS.iter().filter(|row| matches!(row.value, RelocFormula::Refused(_))) {
        let refused = one(&[0; 24], &rela(row.raw, OFFSET, 1, 0), SYMBOLS[1]).unwrap_err();
        assert!(
            matches!(refused, RelocError::Unsupported { reason, .. } if RelocFormula::Refused(reason) == row.value)
        );
    }
    assert!(row(100).is_none());
    assert_eq!(Reason::Unknown.to_string(), "the ABI has no such number");
}

#[test]
fn an_overflow_says_what_where_and_by_how_much() {
    let external = |addr| RelocSymbol { addr: Addr::new(addr), size: 0, kind: RelocSymbolKind::External };
    for (raw, symbol, said) in [
        (
            4,
            external(0x1_0010_001c),
            "R_X86_64_PLT32 at +0x8: 0x100000010 is 0x80000011 beyond its 32-bit field; compile with -fPIC",
        ),
        (
            2,
            external(0x7fff_1234_5678),
            "R_X86_64_PC32 at +0x8: 0x7fff1224566c is 0x7ffe9224566d beyond its 32-bit field; compile with -fPIC",
        ),
        (
            11,
            external(0x8000_0004),
            "R_X86_64_32S at +0x8: 0x80000000 is 0x1 beyond its 32-bit field; compile with -fPIC",
        ),
        (
            10,
            external(0),
            "R_X86_64_32 at +0x8: 0xfffffffffffffffc is 0xfffffffefffffffd beyond its 32-bit field; compile with -fPIC",
        ),
        (
            2,
            RelocSymbol { addr: Addr::new(1 << 40), ..SYMBOLS[1] },
            "R_X86_64_PC32 at +0x8: 0xffffeffff4 is 0xff7feffff5 beyond its 32-bit field; place the module's sections nearer to each other",
        ),
        (12, external(0x2_0004), "R_X86_64_16 at +0x8: 0x20000 is 0x10001 beyond its 16-bit field; use a wider field"),
        (15, external(0x0f_ff00), "R_X86_64_PC8 at +0x8: -0x10c is 0x8c beyond its 8-bit field; use a wider field"),
    ] {
        let refused = one(&[0; 24], &rela(raw, OFFSET, 1, -4), symbol).unwrap_err();
        assert_eq!(refused.to_string(), said);
    }
}

#[test]
fn a_discarded_section_is_refused_or_left_zero() {
    let relas = [rela(2, 0, 1, 0), rela(1, OFFSET, 0, 0x77)].concat();
    let symbols = [SYMBOLS[0], RelocSymbol { kind: RelocSymbolKind::Discarded, ..SYMBOLS[1] }];
    let mut bytes = [0; 24];
    let mut window = Window::new(TEXT, &mut bytes);
    let refused = apply(&target(&[0; 24]), records(&relas), &symbols[..], &slots(&relas), &mut window).unwrap_err();
    assert_eq!(refused.to_string(), "R_X86_64_PC32 at +0x0: the section of symbol 1 was not kept");

    let lenient = RelocatedSection { discarded: OnDiscarded::LeaveZero, ..target(&[0; 24]) };
    let counts = apply(&lenient, records(&relas), &symbols[..], &slots(&relas), &mut window).unwrap();
    assert_eq!((counts.total(), counts.skipped), (2, 1));
    assert_eq!((bytes[0], bytes[8]), (0, 0x77));
}

#[test]
fn counts_of_sections_add_up() {
    let relas = [rela(2, 0, 1, 0), rela(2, 4, 1, 0), rela(1, OFFSET, 1, 0)].concat();
    let file = [0; 24];
    let mut sum =
        apply(&target(&file), records(&relas), &SYMBOLS[..], &slots(&relas), &mut Counter::default()).unwrap();
    sum += sum;
    assert_eq!(sum.iter().collect::<Vec<_>>(), [("R_X86_64_64", 2), ("R_X86_64_PC32", 4)]);
}

/// A sink of another crate. Its error must come back with the relocation that caused it.
struct Full;

impl Sink for Full {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        Err(Rejected::Collision { at: edit.at, first: edit.why, second: edit.why })
    }
}

#[test]
fn what_the_sink_says_is_the_source_of_the_error() {
    let relas = rela(2, OFFSET, 1, 0);
    let sink: &mut dyn Sink = &mut Full;
    let refused = apply(&target(&[0; 24]), records(&relas), &SYMBOLS[..], &slots(&relas), sink).unwrap_err();
    assert_eq!(refused.site().offset, OFFSET);
    assert!(std::error::Error::source(&refused).unwrap().to_string().contains("collides"));
}
