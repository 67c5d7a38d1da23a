//! Thread-local variables without a fixed offset, and what is refused. `tests/ld` has those with one.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Window};
use modload_relocs::{
    OnDiscarded, RelocCounts, RelocError, RelocSymbol, RelocSymbolKind, RelocatedSection, SlotPlan, Slots, TlsBlock,
    TlsBlocks, apply, clear, relaxes_local_dynamic,
};

const TEXT: Addr = Addr::new(0x10_0000);
const GOT: Addr = Addr::new(0x30_0000);
const GET_ADDR: Addr = Addr::new(0x20_0000);
const RESOLVER: Addr = Addr::new(0x20_0030);

const GD: u32 = 19;
const LD: u32 = 20;
const DTPOFF32: u32 = 21;
const GOTTPOFF: u32 = 22;
const TPOFF32: u32 = 23;
const DESCRIPTOR: u32 = 34;
const DESCRIPTOR_CALL: u32 = 35;

/// The null symbol, a variable of the module, one of another block, `__tls_get_addr`, and a function.
const SYMBOLS: [RelocSymbol; 5] = [
    RelocSymbol { addr: Addr::NULL, size: 0, kind: RelocSymbolKind::Absolute },
    RelocSymbol { addr: Addr::new(0x18), size: 8, kind: RelocSymbolKind::ThreadLocal(0) },
    RelocSymbol { addr: Addr::new(0x40), size: 8, kind: RelocSymbolKind::ThreadLocal(1) },
    RelocSymbol { addr: GET_ADDR, size: 0, kind: RelocSymbolKind::Defined },
    RelocSymbol { addr: Addr::new(0x40_0000), size: 0, kind: RelocSymbolKind::Defined },
];

/// General dynamic: `data16 lea x@tlsgd(%rip),%rdi` and the call.
const GD_DIRECT: [u8; 16] = [0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8, 0, 0, 0, 0];
const GD_INDIRECT: [u8; 16] = [0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0x66, 0x48, 0xff, 0x15, 0, 0, 0, 0];

fn rela(kind: u32, offset: u64, symbol: u32, addend: i64) -> Vec<u8> {
    let mut bytes = offset.to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(symbol.to_le_bytes());
    bytes.extend(addend.to_le_bytes());
    bytes
}

fn records(bytes: &[u8]) -> Records<'_, Rela> {
    Records::new(bytes).unwrap()
}

fn blocks(fixed: [Option<i64>; 2]) -> TlsBlocks {
    let [own, other] = fixed;
    TlsBlocks {
        blocks: vec![
            TlsBlock { number: 0x50, from_thread_pointer: own },
            TlsBlock { number: 0x58, from_thread_pointer: other },
        ],
        get_addr: GET_ADDR,
        resolver: RESOLVER,
        relax_local: own.is_some(),
    }
}

fn slots(relas: &[u8], fixed: [Option<i64>; 2]) -> Slots {
    let mut plan = SlotPlan::new(5);
    plan.scan(1, records(relas), |_| false);
    plan.place(GOT, Addr::NULL).with_thread_local(blocks(fixed))
}

fn relocated(file: &[u8], relas: &[u8], fixed: [Option<i64>; 2]) -> Result<(Vec<u8>, RelocCounts), RelocError> {
    let target = RelocatedSection { section: 1, addr: TEXT, bytes: file, discarded: OnDiscarded::Refuse };
    let slots = slots(relas, fixed);
    let mut bytes = file.to_vec();
    let counts = apply(&target, records(relas), &SYMBOLS[..], &slots, &mut Window::new(TEXT, &mut bytes))?;
    let mut back = bytes.clone();
    clear(&target, records(relas), &SYMBOLS[..], &slots, &mut Window::new(TEXT, &mut back))?;
    assert_eq!(back, file, "clear leaves something behind");
    Ok((bytes, counts))
}

fn got(relas: &[u8], fixed: [Option<i64>; 2]) -> Result<Vec<u64>, RelocError> {
    let slots = slots(relas, fixed);
    let mut plan = SlotPlan::new(5);
    plan.scan(1, records(relas), |_| false);
    let mut bytes = vec![0; usize::try_from(plan.got_size()).unwrap()];
    slots.fill_got(&SYMBOLS[..], &mut Window::new(GOT, &mut bytes))?;
    Ok(bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect())
}

fn field(bytes: &[u8], at: usize) -> i64 {
    i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

#[test]
fn pairs_and_descriptors_name_block_and_offset() {
    let relas = [
        rela(9, 0, 4, -4),
        rela(GD, 4, 1, -4),
        rela(GD, 8, 2, -4),
        rela(LD, 12, 1, -4),
        rela(DESCRIPTOR, 16, 2, -4),
        rela(GD, 20, 1, -4),
    ]
    .concat();
    let words = got(&relas, [None, None]).unwrap();
    // The slot of the function, the module's own pair, two pairs, a descriptor.
    assert_eq!(words, [0x40_0000, 0x50, 0, 0x50, 0x18, 0x58, 0x40, RESOLVER.get(), 0x40 << 32 | 0x58]);
    let (bytes, counts) = relocated(&[0; 24], &relas, [None, None]).unwrap();
    let at = |place: usize| field(&bytes, place) + 4 + i64::try_from(place).unwrap() - (GOT - TEXT);
    assert_eq!([at(0), at(4), at(8), at(12), at(16), at(20)], [0, 24, 40, 8, 56, 24]);
    assert_eq!(counts.relaxed, 0);
}

#[test]
fn an_access_is_relaxed_only_as_the_whole_sequence_and_with_a_fixed_offset() {
    let call = |kind, symbol, addend| rela(kind, 12, symbol, addend);
    for (code, kind) in [(GD_DIRECT, 4), (GD_INDIRECT, 41)] {
        let both = [rela(GD, 4, 2, -4), call(kind, 3, -4)].concat();
        let (bytes, counts) = relocated(&code, &both, [None, Some(-0x100)]).unwrap();
        let expected = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x8d, 0x80, 0x40, 0xff, 0xff, 0xff];
        assert_eq!((&bytes[..], counts.relaxed, counts.total()), (&expected[..], 1, 2));
        // Without a fixed offset, with another addend, or if something else is called, the pair is used.
        let other = [rela(GD, 4, 2, -8), call(kind, 3, -4)].concat();
        let called = [rela(GD, 4, 2, -4), call(kind, 4, -4)].concat();
        for (relas, fixed) in [(&both, None), (&other, Some(-0x100)), (&called, Some(-0x100))] {
            let (bytes, _) = relocated(&code, relas, [None, fixed]).unwrap();
            assert_eq!(bytes[..4], code[..4], "{relas:x?}");
        }
        // No two prefixes of another form stay before a relaxed call.
        let (bytes, _) = relocated(&code, &both, [None, None]).unwrap();
        assert_eq!(bytes[8..12], GD_DIRECT[8..12]);
    }
}

#[test]
fn local_dynamic_accesses_are_relaxed_all_or_not_at_all() {
    let code = [0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0];
    let offset = rela(DTPOFF32, 20, 1, 4);
    let good = [rela(LD, 3, 1, -4), rela(4, 8, 3, -4), offset.clone()].concat();
    let file = [&code[..], &[0; 12]].concat();
    assert!(relaxes_local_dynamic(&file, records(&good)));
    for (why, bad) in [
        ("another addend", [rela(LD, 3, 1, -8), rela(4, 8, 3, -4)].concat()),
        ("another instruction", [rela(LD, 4, 1, -4), rela(4, 8, 3, -4)].concat()),
        ("at the start", [rela(LD, 0, 1, -4), rela(4, 8, 3, -4)].concat()),
        ("outside", [rela(LD, 0x1000, 1, -4), rela(4, 8, 3, -4)].concat()),
        ("an offset of 64 bits", [good.clone(), rela(17, 12, 1, 0)].concat()),
    ] {
        assert!(!relaxes_local_dynamic(&file, records(&bad)), "{why}");
    }
    let (bytes, counts) = relocated(&file, &good, [Some(-0x200), None]).unwrap();
    assert_eq!(bytes[..12], [0x66, 0x66, 0x66, 0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0]);
    assert_eq!((field(&bytes, 20), counts.relaxed), (-0x200 + 0x18 + 4, 1));
    let (bytes, counts) = relocated(&file, &good, [None, None]).unwrap();
    assert_eq!((field(&bytes, 20), counts.relaxed), (0x18 + 4, 0));
    // The call must belong to the sequence.
    let alone = [rela(LD, 3, 1, -4), offset].concat();
    let refused = relocated(&file, &alone, [Some(-0x200), None]).unwrap_err();
    assert!(matches!(refused, RelocError::Sequence { .. }), "{refused}");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let one = |file: &[u8], kind, offset, symbol, fixed| {
        relocated(file, &rela(kind, offset, symbol, -4), fixed).map(|(bytes, _)| bytes).unwrap_err().to_string()
    };
    let file = [0; 32];
    for kind in [GD, LD, DTPOFF32, GOTTPOFF, TPOFF32, DESCRIPTOR, DESCRIPTOR_CALL] {
        let refused = one(&file, kind, 8, 4, [Some(-8), None]);
        assert!(refused.ends_with("the symbol is no thread-local variable"), "{refused}");
        let refused = one(&file, kind, 8, 9, [Some(-8), None]);
        assert!(refused.ends_with("there is no symbol 9"), "{refused}");
    }
    for kind in [1, 2, 4, 9, 10, 25] {
        let refused = one(&file, kind, 8, 1, [None, None]);
        assert!(refused.contains("which has another address in each thread"), "{refused}");
    }
    for kind in [GOTTPOFF, TPOFF32, 18] {
        let refused = one(&file, kind, 8, 1, [None, Some(-8)]);
        assert!(refused.ends_with("compile with -fPIC and -ftls-model=global-dynamic"), "{refused}");
    }
    // A descriptor's two instructions are relaxed both or the module is refused.
    for (kind, offset) in [(DESCRIPTOR, 8), (DESCRIPTOR, 1), (DESCRIPTOR_CALL, 8), (DESCRIPTOR_CALL, 31)] {
        let refused = one(&file, kind, offset, 1, [Some(-8), None]);
        assert!(refused.contains("not the one that the ABI requires"), "{refused}");
    }
    let far = relocated(&file, &rela(TPOFF32, 8, 1, i64::MAX), [Some(-8), None]).unwrap_err();
    assert!(matches!(far, RelocError::Overflow { .. }), "{far}");
    let outside = relocated(&file, &rela(TPOFF32, 30, 1, 0), [Some(-8), None]).unwrap_err();
    assert!(matches!(outside, RelocError::Outside { .. }), "{outside}");
}

#[test]
fn the_plan_knows_which_variables_need_a_fixed_offset() {
    let relas = [rela(TPOFF32, 0, 1, 0), rela(GOTTPOFF, 4, 2, 0), rela(GOTTPOFF, 8, 2, 0), rela(GD, 12, 1, 0)].concat();
    let mut plan = SlotPlan::new(5);
    assert!(!plan.has_thread_local());
    plan.scan(1, records(&relas), |_| false);
    plan.scan(1, records(&rela(TPOFF32, 0, 77, 0)), |_| false);
    assert_eq!(plan.fixed().iter().map(|site| (site.symbol, site.offset)).collect::<Vec<_>>(), [(1, 0), (2, 4)]);
    assert!(
        plan.is_thread_local(1) && plan.is_thread_local(2) && !plan.is_thread_local(3) && !plan.is_thread_local(77)
    );
    // An initial exec access that cannot be relaxed uses a slot with the offset.
    let words = got(&rela(GOTTPOFF, 8, 2, 0), [None, Some(-0x100)]).unwrap();
    assert_eq!(words, [(-0xc0_i64).cast_unsigned()]);
    let refused = got(&rela(GOTTPOFF, 8, 2, 0), [None, None]).unwrap_err();
    assert!(matches!(refused, RelocError::NoFixedOffset { .. }), "{refused}");
}
