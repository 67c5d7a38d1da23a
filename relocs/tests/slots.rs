//! GOT slots, PLT entries, and the instructions that can do without them.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, EditSet, Engine, Rejected, Window};
use modload_relocs::{
    IndirectPlan, OnDiscarded, RelocCounts, RelocError, RelocSymbol, RelocSymbolKind, RelocatedSection, SlotPlan,
    Slots, apply, clear,
};

const TEXT: Addr = Addr::new(0x10_0000);
const GOT: Addr = Addr::new(0x30_0000);
const PLT: Addr = Addr::new(0x20_0000);
const FAR: Addr = Addr::new(0x7fff_1234_5678);
const NEAR: Addr = Addr::new(0x11_0000);

const PC32: u32 = 2;
const PLT32: u32 = 4;
const GOTPCREL: u32 = 9;
const GOT64: u32 = 27;
const GOTPLT64: u32 = 30;
const PLTOFF64: u32 = 31;
const GOTPCRELX: u32 = 41;
const REX_GOTPCRELX: u32 = 42;

/// Returns records with this number, offset and symbol, and the addend of an operand at the end of its instruction.
fn relas(rows: &[(u32, u64, u32)]) -> Vec<u8> {
    with_addend(rows, -4)
}

fn with_addend(rows: &[(u32, u64, u32)], addend: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (raw, offset, symbol) in rows {
        bytes.extend(offset.to_le_bytes());
        bytes.extend(raw.to_le_bytes());
        bytes.extend(symbol.to_le_bytes());
        bytes.extend(addend.to_le_bytes());
    }
    bytes
}

fn records(bytes: &[u8]) -> Records<'_, Rela> {
    Records::new(bytes).unwrap()
}

fn plan(relas: &[u8], undefined: impl FnMut(u32) -> bool) -> SlotPlan {
    let mut plan = SlotPlan::new(8);
    plan.scan(5, records(relas), undefined);
    plan
}

fn symbols(addr: Addr, kind: RelocSymbolKind) -> [RelocSymbol; 8] {
    [RelocSymbol { addr, size: 0, kind }; 8]
}

fn text(bytes: &[u8]) -> RelocatedSection<'_> {
    RelocatedSection { section: 5, addr: TEXT, bytes, discarded: OnDiscarded::Refuse }
}

/// Relocates `file`, checks that clearing restores it, and returns the relocated bytes.
fn relocate(
    file: &[u8],
    relas: &[u8],
    slots: &Slots,
    symbol: RelocSymbol,
) -> Result<(Vec<u8>, RelocCounts), RelocError> {
    let symbols = [symbol; 8];
    let mut bytes = file.to_vec();
    let counts = apply(&text(file), records(relas), &symbols[..], slots, &mut Window::new(TEXT, &mut bytes))?;
    let mut back = bytes.clone();
    clear(&text(file), records(relas), &symbols[..], slots, &mut Window::new(TEXT, &mut back))?;
    assert_eq!(back, file);
    Ok((bytes, counts))
}

#[test]
fn a_plan_counts_each_symbol_once() {
    let relas = relas(&[
        (GOTPCREL, 0, 3),
        (REX_GOTPCRELX, 4, 3),
        (GOT64, 8, 2),
        (GOTPLT64, 16, 2),
        (PLT32, 24, 4), // undefined: an entry and a slot
        (PLT32, 28, 4),
        (PLT32, 32, 3), // undefined: an entry; the slot exists already
        (PLT32, 36, 5), // defined
        (PLTOFF64, 40, 6),
        (PC32, 48, 6), // a data reference may not be redirected
    ]);
    let plan = plan(&relas, |symbol| symbol != 5);
    assert_eq!((plan.got_size(), plan.plt_size()), (3 * 8, 2 * 16));
    let slots = plan.place(GOT, PLT);
    assert_eq!(slots.slots().collect::<Vec<_>>(), [3, 2, 4]);
    assert_eq!(slots.entries().collect::<Vec<_>>(), [4, 3]);
    assert_eq!((slots.slot(4), slots.entry(4)), (Some(GOT + 16), Some(PLT)));
    assert_eq!((slots.slot(2), slots.entry(2)), (Some(GOT + 8), None));
    for none in [0, 5, 6, 7, 8, u32::MAX] {
        assert_eq!((slots.slot(none), slots.entry(none)), (None, None));
    }
}

#[test]
fn a_plan_passes_over_what_apply_refuses() {
    let relas = relas(&[(GOTPCREL, 0, 8), (GOTPCREL, 0, u32::MAX), (99, 0, 1), (36, 0, 1), (PLT32, 0, 8), (19, 0, 8)]);
    let plan = plan(&relas, |_| true);
    assert_eq!((plan.got_size(), plan.plt_size()), (0, 0));
}

#[test]
fn slots_hold_addresses_and_entries_jump_through_them() {
    let relas = relas(&[(GOTPCREL, 0, 1), (PLT32, 4, 2)]);
    let slots = plan(&relas, |_| true).place(GOT, PLT);
    let mut symbols = symbols(FAR, RelocSymbolKind::External);
    symbols[1].addr = NEAR;

    let mut got = [0; 16];
    slots.fill_got(&symbols[..], &mut Window::new(GOT, &mut got)).unwrap();
    assert_eq!(got[..8], NEAR.get().to_le_bytes());
    assert_eq!(got[8..], FAR.get().to_le_bytes());

    let mut plt = [0xcc; 16];
    slots.fill_plt(&mut Window::new(PLT, &mut plt)).unwrap();
    let expected = [
        0xf3, 0x0f, 0x1e, 0xfa, // endbr64
        0xff, 0x25, 0xfe, 0xff, 0x0f, 0x00, // jmp *0xffffe(%rip) # 0x300008
        0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, // int3
    ];
    assert_eq!(plt, expected);

    // Each edit names the relocation that first needed the entry.
    let mut plan = EditSet::new();
    slots.fill_plt(&mut plan).unwrap();
    slots.fill_got(&symbols[..], &mut plan).unwrap();
    let whys: Vec<_> = plan.iter().map(|edit| (edit.at, edit.why.engine, edit.why.section, edit.why.record)).collect();
    assert_eq!(whys, [(PLT, Engine::Slot, 5, 1), (GOT, Engine::Slot, 5, 0), (GOT + 8, Engine::Slot, 5, 1)]);
}

#[test]
fn slots_are_written_over_known_bytes_only() {
    let relas = relas(&[(PLT32, 4, 2)]);
    let slots = plan(&relas, |_| true).place(GOT, PLT);
    let symbols = symbols(FAR, RelocSymbolKind::External);
    let refused = slots.fill_got(&symbols[..], &mut Window::new(GOT, &mut [1; 8])).unwrap_err();
    assert!(matches!(refused, RelocError::Rejected { source: Rejected::Mismatch { .. }, .. }), "{refused}");
    let refused = slots.fill_plt(&mut Window::new(PLT, &mut [0x90; 16])).unwrap_err();
    assert!(matches!(refused, RelocError::Rejected { source: Rejected::Mismatch { .. }, .. }), "{refused}");
    let refused = slots.fill_got(&symbols[..2], &mut EditSet::new()).unwrap_err();
    assert_eq!(refused.to_string(), "R_X86_64_PLT32 at +0x4: there is no symbol 2");
}

#[test]
fn a_got_that_the_plt_cannot_reach_is_an_overflow() {
    let relas = relas(&[(PLT32, 4, 2)]);
    for (distance, fits) in [(0x7fff_ffff, true), (0x8000_0000, false), (-0x8000_0000, true), (-0x8000_0001, false)] {
        let plt = Addr::new(0x10_0000_0000);
        let slots = plan(&relas, |_| true).place((plt + 10).offset(distance), plt);
        match slots.fill_plt(&mut EditSet::new()) {
            Ok(()) => assert!(fits),
            Err(refused) => assert!(!fits && matches!(refused, RelocError::Overflow { beyond: 1, .. }), "{refused}"),
        }
    }
}

#[test]
fn the_slot_of_a_discarded_symbol_stays_zero() {
    let slots = plan(&relas(&[(GOTPCREL, 0, 1)]), |_| true).place(GOT, PLT);
    let mut got = [0; 8];
    slots.fill_got(&symbols(FAR, RelocSymbolKind::Discarded)[..], &mut Window::new(GOT, &mut got)).unwrap();
    assert_eq!(got, [0; 8]);
}

#[test]
fn a_call_goes_to_the_symbol_if_it_can_and_through_the_plt_if_it_must() {
    let relas = relas(&[(PLT32, 1, 1)]);
    let file = [0xe8, 0, 0, 0, 0];
    let slots = plan(&relas, |_| true).place(GOT, PLT);
    let external = |addr| RelocSymbol { addr, size: 0, kind: RelocSymbolKind::External };
    let (near, counts) = relocate(&file, &relas, &slots, external(NEAR)).unwrap();
    assert_eq!((near, counts.through_plt), (vec![0xe8, 0xfb, 0xff, 0x00, 0x00], 0)); // call 0x110000
    let (far, counts) = relocate(&file, &relas, &slots, external(FAR)).unwrap();
    assert_eq!((far, counts.through_plt), (vec![0xe8, 0xfb, 0xff, 0x0f, 0x00], 1)); // call 0x200000
    let refused = relocate(&file, &relas, &Slots::default(), external(FAR)).unwrap_err();
    assert!(matches!(refused, RelocError::Overflow { .. }), "{refused}");
}

#[test]
fn a_slot_that_was_not_planned_is_missing() {
    for row in [GOTPCREL, GOT64, GOTPLT64, GOTPCRELX] {
        let relas = relas(&[(row, 2, 1)]);
        let symbol = RelocSymbol { addr: FAR, size: 0, kind: RelocSymbolKind::External };
        let refused = relocate(&[0; 16], &relas, &Slots::default(), symbol).unwrap_err();
        assert!(matches!(refused, RelocError::MissingSlot { .. }), "{refused}");
    }
}

/// Relocates one instruction by a relocation of this kind and offset.
fn relaxed(file: &[u8], raw: u32, offset: u64, addend: i64, kind: RelocSymbolKind) -> (Vec<u8>, u32) {
    let relas = with_addend(&[(raw, offset, 1)], addend);
    let slots = plan(&relas, |_| true).place(GOT, PLT);
    let addr = if kind == RelocSymbolKind::UndefinedWeak { Addr::NULL } else { NEAR };
    let (bytes, counts) = relocate(file, &relas, &slots, RelocSymbol { addr, size: 0, kind }).unwrap();
    (bytes, counts.relaxed)
}

#[test]
fn loads_calls_and_jumps_are_relaxed() {
    for (row, offset, before, after) in [
        // mov slot(%rip), %rax; lea 0xfff9(%rip), %rax
        (REX_GOTPCRELX, 3, &[0x48, 0x8b, 0x05, 0, 0, 0, 0][..], &[0x48, 0x8d, 0x05, 0xf9, 0xff, 0, 0][..]),
        // mov slot(%rip), %ecx; lea 0xfffa(%rip), %ecx
        (GOTPCRELX, 2, &[0x8b, 0x0d, 0, 0, 0, 0], &[0x8d, 0x0d, 0xfa, 0xff, 0, 0]),
        // call *slot(%rip); addr32 call 0x110000
        (GOTPCRELX, 2, &[0xff, 0x15, 0, 0, 0, 0], &[0x67, 0xe8, 0xfa, 0xff, 0, 0]),
        // jmp *slot(%rip); jmp 0x110000; nop
        (GOTPCRELX, 2, &[0xff, 0x25, 0, 0, 0, 0], &[0xe9, 0xfb, 0xff, 0, 0, 0x90]),
    ] {
        for kind in [RelocSymbolKind::Defined, RelocSymbolKind::External, RelocSymbolKind::Absolute] {
            assert_eq!(relaxed(before, row, offset, -4, kind), (after.to_vec(), 1));
        }
    }
}

#[test]
fn everything_else_keeps_its_slot() {
    let defined = RelocSymbolKind::Defined;
    let mov = [0x48, 0x8b, 0x05, 0, 0, 0, 0, 0, 0];
    for (why, row, offset, file, addend, kind) in [
        ("add", REX_GOTPCRELX, 3, [0x48, 0x03, 0x05, 0, 0, 0, 0, 0, 0], -4, defined),
        ("test", REX_GOTPCRELX, 3, [0x48, 0x85, 0x05, 0, 0, 0, 0, 0, 0], -4, defined),
        ("push", GOTPCRELX, 2, [0xff, 0x35, 0, 0, 0, 0, 0, 0, 0], -4, defined),
        ("not relative to rip", REX_GOTPCRELX, 3, [0x48, 0x8b, 0x80, 0, 0, 0, 0, 0, 0], -4, defined),
        ("no REX prefix", REX_GOTPCRELX, 3, [0x66, 0x8b, 0x05, 0, 0, 0, 0, 0, 0], -4, defined),
        ("not the slot itself", REX_GOTPCRELX, 3, mov, 4, defined),
        ("the old kind", GOTPCREL, 3, mov, -4, defined),
        ("nobody defines it", REX_GOTPCRELX, 3, mov, -4, RelocSymbolKind::UndefinedWeak),
    ] {
        let place = TEXT + offset;
        let mut expected = file;
        let at = usize::try_from(offset).unwrap();
        expected[at..at + 4].copy_from_slice(&(GOT.offset(addend) - place).to_le_bytes()[..4]);
        assert_eq!(relaxed(&file, row, offset, addend, kind), (expected.to_vec(), 0), "{why}");
    }
}

#[test]
fn a_kind_that_belongs_to_an_instruction_needs_room_for_one() {
    for (row, short) in [(GOTPCRELX, 0..2), (REX_GOTPCRELX, 0..3)] {
        for offset in short {
            let relas = relas(&[(row, offset, 1)]);
            let slots = plan(&relas, |_| true).place(GOT, PLT);
            let symbol = RelocSymbol { addr: NEAR, size: 0, kind: RelocSymbolKind::Defined };
            let refused = relocate(&[0x8b; 16], &relas, &slots, symbol).unwrap_err();
            assert!(matches!(refused, RelocError::NoOpcode { .. }), "{refused}");
        }
    }
}

/// If a relaxed jump were two edits, the first would cover the place of the second.
#[test]
fn a_relaxed_instruction_is_one_edit() {
    let relas = relas(&[(GOTPCRELX, 2, 1)]);
    let slots = plan(&relas, |_| true).place(GOT, PLT);
    let file = [0xff, 0x25, 0, 0, 0, 0];
    let mut plan = EditSet::new();
    let symbols = symbols(NEAR, RelocSymbolKind::Defined);
    apply(&text(&file), records(&relas), &symbols[..], &slots, &mut plan).unwrap();
    let edits: Vec<_> = plan.iter().map(|edit| (edit.at, edit.old.to_vec(), edit.new.to_vec())).collect();
    assert_eq!(edits, [(TEXT, file.to_vec(), vec![0xe9, 0xfb, 0xff, 0, 0, 0x90])]);
}

#[test]
fn an_indirect_function_is_an_entry_whose_slot_traps_until_it_is_resolved() {
    let mut plan = IndirectPlan::default();
    plan.add(3);
    plan.add(7);
    assert_eq!((plan.plt_size(), plan.slots_size()), (32, 16));
    assert_eq!([3, 5, 7].map(|symbol| plan.entry(symbol)), [Some(0), None, Some(16)]);
    assert_eq!([3, 5, 7].map(|symbol| plan.slot(symbol)), [Some(0), None, Some(8)]);

    let mut plt = [0xcc; 32];
    plan.fill_plt(PLT, GOT, 9, &mut Window::new(PLT, &mut plt)).unwrap();
    let expected = [
        0xf3, 0x0f, 0x1e, 0xfa, // endbr64
        0xff, 0x25, 0xee, 0xff, 0x0f, 0x00, // jmp *0xfffee(%rip) # 0x300008
        0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, // int3
    ];
    assert_eq!(plt[16..], expected);

    let mut slots = [0; 16];
    plan.fill_slots(PLT, GOT, 9, &mut Window::new(GOT, &mut slots)).unwrap();
    let first_int3 = (PLT + 16 + 10).get().to_le_bytes();
    assert_eq!(slots[8..], first_int3);

    // Each edit names the symbol of its entry.
    let mut edits = EditSet::new();
    plan.fill_plt(PLT, GOT, 9, &mut edits).unwrap();
    let whys: Vec<_> = edits.iter().map(|edit| (edit.why.engine, edit.why.section, edit.why.record)).collect();
    assert_eq!(whys, [(Engine::Indirect, 9, 3), (Engine::Indirect, 9, 7)]);

    let far = plan.fill_plt(PLT, PLT + 0x8000_000a, 9, &mut EditSet::new()).unwrap_err();
    assert!(matches!(far, RelocError::Overflow { beyond: 1, .. }), "{far}");
}
