//! Records of Linux since 6.3: 14 bytes, a field for flags, and calls through pointers that become direct calls.

use modload_alternatives::{Facts, Features, Processors, Profile, Returns, RewriteProblem, alternatives};
use modload_edit::{Addr, Code, CodeBuffers, Ledger, PieceKind, PlanError, RecordTable, disassembled};

const TEXT: u64 = 0x1000;
const REPLACEMENTS: u64 = 0x1800;
const TABLE: u64 = 0x2000;
const POINTER: u64 = 0x3000;

const NOT: u16 = 1;
const DIRECT_CALL: u16 = 2;
const FPU: u16 = 0;

fn facts(features: &str) -> Facts {
    Facts {
        features: Features::named(features).unwrap(),
        processors: Processors::Several,
        indirect_thunks: None,
        returns: Returns::default(),
    }
}

fn record(feature: u16, flags: u16, site_len: u8, replacement_len: u8) -> Vec<u8> {
    let distance = |to: u64, from: u64| i32::try_from(i128::from(to) - i128::from(from)).unwrap().to_le_bytes();
    let mut record = distance(TEXT, TABLE).to_vec();
    record.extend(distance(REPLACEMENTS, TABLE + 4));
    record.extend(feature.to_le_bytes());
    record.extend(flags.to_le_bytes());
    record.extend([site_len, replacement_len]);
    record
}

/// Applies one record to a site. Returns the resulting bytes of the site.
fn apply(
    site: &[u8],
    replacement: &[u8],
    record: Vec<u8>,
    features: &str,
) -> Result<String, PlanError<RewriteProblem>> {
    let mut space = CodeBuffers::default();
    let table = RecordTable::of_section(7, Addr::new(TABLE), u64::try_from(record.len()).unwrap());
    space.add(Addr::new(TEXT), PieceKind::Text, [site, &[0xc3]].concat()).unwrap();
    space.add(Addr::new(REPLACEMENTS), PieceKind::Text, replacement.to_vec()).unwrap();
    space.add(Addr::new(TABLE), PieceKind::Data, record).unwrap();
    space.add(Addr::new(POINTER), PieceKind::Data, 0x1400_u64.to_le_bytes().to_vec()).unwrap();
    alternatives(&table, Profile::Linux63, &facts(features), &mut Ledger::new(&mut space))?;
    Ok(disassembled(Addr::new(TEXT), space.bytes(Addr::new(TEXT), site.len()).unwrap()))
}

const MOVE_1: [u8; 5] = [0xb8, 1, 0, 0, 0]; // mov $1,%eax
const MOVE_2: [u8; 5] = [0xb8, 2, 0, 0, 0]; // mov $2,%eax
/// call *POINTER(%rip)
const CALL_THROUGH: [u8; 6] = [0xff, 0x15, 0xfa, 0x1f, 0, 0];
const CALL: [u8; 5] = [0xe8, 0, 0, 0, 0];

#[test]
fn the_flag_not_is_no_part_of_the_number() {
    for (features, flags, expected) in
        [("FPU", 0, "mov $2,%eax"), ("FPU", NOT, "mov $1,%eax"), ("", 0, "mov $1,%eax"), ("", NOT, "mov $2,%eax")]
    {
        assert_eq!(
            apply(&MOVE_1, &MOVE_2, record(FPU, flags, 5, 5), features).unwrap(),
            expected,
            "{features} {flags}"
        );
    }
}

#[test]
fn a_call_through_a_pointer_becomes_a_direct_one() {
    let replaced = apply(&CALL_THROUGH, &CALL, record(FPU, DIRECT_CALL, 6, 5), "FPU");
    assert_eq!(replaced.unwrap(), "call 0x1400; nop");
    let stays = apply(&CALL_THROUGH, &CALL, record(FPU, DIRECT_CALL, 6, 5), "");
    assert_eq!(stays.unwrap(), "callq *0x1ffa(%rip)");
}

#[test]
fn what_is_no_such_call_is_refused() {
    let elsewhere = [0xff, 0x15, 0xfa, 0x4f, 0, 0]; // call *0x4fff(%rip), an address without memory
    for (site, replacement, flags, why) in [
        (&MOVE_1[..], &CALL[..], DIRECT_CALL, "its site is not a call through a pointer"),
        (&CALL_THROUGH, &MOVE_2, DIRECT_CALL, "its site is not one whose replacement is a call"),
        (&elsewhere, &CALL, DIRECT_CALL, "the pointer at 0x6000 that its call goes through is not known"),
        (&MOVE_1, &MOVE_2, 4, "its flags 0x4 are not known"),
    ] {
        let (site_len, len) = (u8::try_from(site.len()).unwrap(), u8::try_from(replacement.len()).unwrap());
        let refused = apply(site, replacement, record(FPU, flags, site_len, len), "FPU").unwrap_err().to_string();
        assert!(refused.starts_with("alternative 0 of section 7: ") && refused.contains(why), "{refused}");
    }
    let cut = apply(&MOVE_1, &MOVE_2, record(FPU, 0, 5, 5)[..13].to_vec(), "FPU").unwrap_err().to_string();
    assert!(cut.contains("its section is no whole number of records"), "{cut}");
}
