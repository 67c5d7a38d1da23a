//! Records are untrusted input: every record results in an edit within the section or in an error.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, EditSet, Rejected, Window, wide};
use modload_relocs::{
    OnDiscarded, ROWS, RelocError, RelocField, RelocSymbol, RelocSymbolKind, RelocatedSection, SlotPlan, Slots, apply,
    clear,
};

fn record(offset: u64, raw: u32, symbol: u32, addend: i64) -> Vec<u8> {
    let mut bytes = offset.to_le_bytes().to_vec();
    bytes.extend(raw.to_le_bytes());
    bytes.extend(symbol.to_le_bytes());
    bytes.extend(addend.to_le_bytes());
    bytes
}

fn symbol(addr: u64, size: u64, kind: RelocSymbolKind) -> RelocSymbol {
    RelocSymbol { addr: Addr::new(addr), size, kind }
}

/// Plans, applies and clears as a loader does, at the given addresses.
fn run(file: &[u8], relas: &[u8], symbols: &[RelocSymbol], [text, got, plt]: [Addr; 3]) -> Result<(), RelocError> {
    let records = Records::<Rela>::new(relas).unwrap();
    let mut plan = SlotPlan::new(u32::try_from(symbols.len()).unwrap());
    plan.scan(1, records, |symbol| symbol % 2 == 0);
    let slots = plan.place(got, plt);
    slots.fill_got(symbols, &mut EditSet::new())?;
    let entries = slots.fill_plt(&mut EditSet::new());
    let target = RelocatedSection { section: 1, addr: text, bytes: file, discarded: OnDiscarded::LeaveZero };
    let mut bytes = file.to_vec();
    let counts = apply(&target, records, symbols, &slots, &mut Window::new(text, &mut bytes))?;
    assert_eq!(counts.total(), wide(records.len()));
    clear(&target, records, symbols, &slots, &mut Window::new(text, &mut bytes))?;
    assert_eq!(bytes, file);
    entries
}

const USUAL: [Addr; 3] = [Addr::new(0x10_0000), Addr::new(0x30_0000), Addr::new(0x20_0000)];

#[test]
fn a_place_must_lie_within_its_section() {
    // `tests/tls.rs` has the rows of thread-local variables.
    let symbols = [symbol(0x10_0010, 0x10, RelocSymbolKind::Defined); 2];
    for row in ROWS.iter().filter(|row| row.field != RelocField::Nowhere && !row.value.is_thread_local()) {
        let width = u64::from(row.field.width());
        // The last place that fits. Large addends are covered by another test.
        let last = run(&[0; 32], &record(32 - width, row.raw, 1, 0), &symbols, USUAL);
        assert!(matches!(last, Ok(()) | Err(RelocError::Overflow { .. })), "{}: {last:?}", row.name);
        let addend =
            if let Err(RelocError::Overflow { value, .. }) = last { -i64::try_from(value).unwrap() } else { 0 };
        for offset in [33 - width, 31 + u64::from(width == 1), 32, 33, 1 << 32, 1 << 63, u64::MAX - width + 1, u64::MAX]
        {
            let refused = run(&[0; 32], &record(offset, row.raw, 1, addend), &symbols, USUAL).unwrap_err();
            // A value that is relative to the place may overflow first.
            let named = matches!(refused, RelocError::Outside { .. } | RelocError::Overflow { .. });
            assert!(named, "{} at {offset:#x}: {refused}", row.name);
            assert_eq!(refused.site().offset, offset);
        }
        let refused = run(&[], &record(0, row.raw, 1, addend), &symbols, USUAL).unwrap_err();
        assert!(!matches!(refused, RelocError::Rejected { .. }), "{}: {refused}", row.name);
    }
}

#[test]
fn a_place_outside_says_so() {
    let refused =
        run(&[0; 32], &record(29, 2, 0, 0), &[symbol(0x10_0000, 0, RelocSymbolKind::Defined)], USUAL).unwrap_err();
    assert_eq!(refused.to_string(), "R_X86_64_PC32 at +0x1d: its 4 bytes do not lie within a section of 0x20");
}

#[test]
fn a_symbol_must_be_in_the_table() {
    let symbols = [symbol(0x10_0010, 0x10, RelocSymbolKind::Defined); 2];
    for row in ROWS.iter().filter(|row| row.field != RelocField::Nowhere) {
        for index in [2, 3, u32::MAX] {
            let refused = run(&[0; 32], &record(8, row.raw, index, 0), &symbols, USUAL).unwrap_err();
            assert_eq!(refused.to_string(), format!("{} at +0x8: there is no symbol {index}", row.name));
        }
    }
}

/// A window cannot distinguish a place that was rewritten with zeros from an untouched place. A plan can.
#[test]
fn two_relocations_of_one_place_are_refused() {
    let twice = [record(8, 2, 0, 0), record(10, 2, 0, 0)].concat();
    let behind = [symbol(0x10_0000, 0x10, RelocSymbolKind::Defined)];
    let refused = run(&[0; 32], &twice, &behind, USUAL).unwrap_err();
    assert_eq!(refused.site().record, 1);
    assert!(matches!(refused, RelocError::Rejected { source: Rejected::Mismatch { .. }, .. }), "{refused}");

    let before = [symbol(0x10_0010, 0x10, RelocSymbolKind::Defined)];
    let target = RelocatedSection { section: 1, addr: USUAL[0], bytes: &[0; 32], discarded: OnDiscarded::Refuse };
    let records = Records::<Rela>::new(&twice).unwrap();
    let refused = apply(&target, records, &before[..], &Slots::default(), &mut EditSet::new()).unwrap_err();
    assert_eq!(refused.site().record, 1);
    assert!(matches!(refused, RelocError::Rejected { source: Rejected::Collision { .. }, .. }), "{refused}");
}

/// Marsaglia's xorshift generator, which returns the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Returns a number near a power of two in most cases.
    fn extreme(&mut self) -> u64 {
        let power = 1_u64 << self.below(64);
        match self.below(8) {
            0 => self.next(),
            1 => power.wrapping_neg(),
            2 => power.wrapping_sub(self.below(40)),
            3 => power.wrapping_add(self.below(40)),
            4 => self.below(9).wrapping_neg(),
            _ => self.below(64),
        }
    }

    fn word(&mut self, end: u64) -> u32 {
        u32::try_from(self.below(end)).unwrap()
    }

    fn kind(&mut self) -> RelocSymbolKind {
        match self.below(5) {
            0 => RelocSymbolKind::Absolute,
            1 => RelocSymbolKind::External,
            2 => RelocSymbolKind::UndefinedWeak,
            3 => RelocSymbolKind::Discarded,
            _ => RelocSymbolKind::Defined,
        }
    }
}

#[test]
fn nothing_makes_it_panic() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut done, mut refused) = (0, 0);
    for _ in 0..200_000 {
        // Relaxable opcodes occur often, so that those code paths run too.
        let size = numbers.below(48);
        let opcodes = [0x48, 0x8b, 0x05, 0xff, 0x15, 0x25, 0x00, 0x00];
        let file: Vec<u8> = (0..size).map(|_| opcodes[usize::try_from(numbers.below(8)).unwrap()]).collect();
        let symbols: Vec<_> =
            (0..numbers.below(4)).map(|_| symbol(numbers.extreme(), numbers.extreme(), numbers.kind())).collect();
        let mut relas = Vec::new();
        for _ in 0..1 + numbers.below(3) {
            let raw = numbers.word(60);
            relas.extend(record(numbers.extreme(), raw, numbers.word(5), numbers.extreme().cast_signed()));
        }
        let addresses = [(); 3].map(|()| Addr::new(numbers.extreme()));
        match run(&file, &relas, &symbols, addresses) {
            Ok(()) => done += 1,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(done > 1_000 && refused > 1_000, "{done} done, {refused} refused");
}

#[test]
fn random_bytes_are_records_like_any_others() {
    let mut numbers = Numbers(1);
    for _ in 0..50_000 {
        let relas: Vec<u8> = (0..3).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let _refused = run(&[0; 64], &relas, &[symbol(0, 0, RelocSymbolKind::Absolute)], USUAL).unwrap_err();
    }
}
