//! The bytes of a site for each state of its key.

use modload_alternatives::{Facts, Features, Processors, Returns};
use modload_edit::{Addr, Code, CodeBuffers, EditOrigin, Engine, Ledger, PieceKind, RecordTable, disassembled};
use modload_static_keys::{CallTarget, KeyState, StaticCalls, jump_labels, static_calls, trampoline};

const TEXT: Addr = Addr::new(0x1000);
const TABLE: Addr = Addr::new(0x2000);
const KEY: Addr = Addr::new(0x3000);
const FUNCTION: Addr = Addr::new(0x1400);
const RETURN0: Addr = Addr::new(0x1500);

const NOP2: &[u8] = &[0x66, 0x90];
const NOP5: &[u8] = &[0x0f, 0x1f, 0x44, 0x00, 0x00];
const JUMP2: &[u8] = &[0xeb, 0x0e]; // jmp 0x1010
const JUMP5: &[u8] = &[0xe9, 0x0b, 0, 0, 0]; // jmp 0x1010

fn space(site: &[u8], record: &[u8]) -> (CodeBuffers, RecordTable) {
    let mut text = site.to_vec();
    text.resize(0x600, 0xcc);
    let mut space = CodeBuffers::default();
    space.add(TEXT, PieceKind::Text, text).unwrap();
    space.add(TABLE, PieceKind::Data, record.to_vec()).unwrap();
    (space, RecordTable::of_section(3, TABLE, u64::try_from(record.len()).unwrap()))
}

fn distance(to: Addr, from: Addr) -> [u8; 4] {
    i32::try_from(to - from).unwrap().to_le_bytes()
}

/// Returns a record for a jump to 0x1010, likely or not.
fn entry(likely: i64) -> Vec<u8> {
    let key = (KEY - (TABLE + 8)) | likely;
    [&distance(TEXT, TABLE)[..], &distance(TEXT + 0x10, TABLE + 4), &key.to_le_bytes()].concat()
}

fn jump_label(site: &[u8], likely: i64, state: KeyState) -> Result<String, String> {
    let (mut space, table) = space(site, &entry(likely));
    let asked = |key| {
        assert_eq!(key, KEY);
        state
    };
    jump_labels(&table, asked, &mut Ledger::new(&mut space)).map_err(|error| error.to_string())?;
    Ok(disassembled(TEXT, space.bytes(TEXT, site.len()).unwrap()))
}

#[test]
fn a_site_is_a_jump_or_a_nop_of_its_length() {
    use KeyState::{Disabled, Enabled, Unknown};
    let (nop2, jump2, nop5) = ("xchg %ax,%ax", "jmp 0x1010", "nopl (%rax,%rax)");
    for (site, likely, state, expected) in [
        (NOP2, 0, Disabled, nop2),
        (NOP2, 0, Enabled, jump2),
        (NOP2, 1, Disabled, jump2),
        (NOP2, 1, Enabled, nop2),
        (JUMP2, 0, Disabled, nop2),
        (JUMP2, 0, Unknown, jump2),
        (NOP5, 0, Enabled, jump2),
        (JUMP5, 0, Disabled, nop5),
        (JUMP5, 1, Enabled, nop5),
        (NOP5, 0, Unknown, nop5),
    ] {
        assert_eq!(jump_label(site, likely, state).unwrap(), expected, "{site:02x?} {likely} {state:?}");
    }
    // A site of five bytes stays five bytes long.
    let (mut space, table) = space(NOP5, &entry(0));
    jump_labels(&table, |_| Enabled, &mut space).unwrap();
    assert_eq!(space.bytes(TEXT, 5), Some(JUMP5));
}

#[test]
fn a_site_that_is_neither_is_refused() {
    for site in [&[0xb8, 1, 0, 0, 0][..], &[0xeb, 0x0f], &[0x90], &[0xe8, 0x0b, 0, 0, 0]] {
        let refused = jump_label(site, 0, KeyState::Enabled).unwrap_err();
        let expected =
            "jump label 0 of section 3: its site is neither a NOP of 2 or 5 bytes nor the jump to 0x1010; the bytes at";
        assert!(refused.starts_with(expected), "{refused}");
    }
}

fn facts(features: &str) -> Facts {
    Facts {
        features: Features::named(features).unwrap(),
        processors: Processors::Several,
        indirect_thunks: None,
        returns: Returns { compiled: None, thunk: Some(Addr::new(0x1300)), its: None },
    }
}

fn static_call(site: &[u8], tail: i64, target: CallTarget, features: &str) -> Result<String, String> {
    let key = i32::try_from((KEY - (TABLE + 4)) + tail).unwrap().to_le_bytes();
    let (mut space, table) = space(site, &[distance(TEXT, TABLE), key].concat());
    let facts = facts(features);
    let calls = StaticCalls { facts: &facts, return0: Some(RETURN0) };
    let asked = |key| {
        assert_eq!(key, KEY);
        target
    };
    static_calls(&table, calls, asked, &mut Ledger::new(&mut space)).map_err(|error| error.to_string())?;
    Ok(disassembled(TEXT, space.bytes(TEXT, 5).unwrap()))
}

const CALL: &[u8] = &[0xe8, 0, 1, 0, 0]; // call 0x1105
const TAIL: &[u8] = &[0xe9, 0, 1, 0, 0]; // jmp 0x1105
const ZERO: &[u8] = &[0x2e, 0x2e, 0x2e, 0x31, 0xc0]; // cs cs cs xor %eax,%eax
const RETURN: &[u8] = &[0xc3, 0xcc, 0xcc, 0xcc, 0xcc];

#[test]
fn a_static_call_is_what_its_key_calls() {
    use CallTarget::{Function, Null, Unknown};
    for (site, tail, target, features, expected) in [
        (CALL, 0, Function(FUNCTION), "", "call 0x1400"),
        (CALL, 0, Null, "", "nopl (%rax,%rax)"),
        (CALL, 0, Function(RETURN0), "", "xor %eax,%eax"),
        (CALL, 0, Unknown, "", "call 0x1105"),
        (NOP5, 0, Function(FUNCTION), "", "call 0x1400"),
        (ZERO, 0, Function(FUNCTION), "", "call 0x1400"),
        (TAIL, 1, Function(FUNCTION), "", "jmp 0x1400"),
        (TAIL, 1, Function(RETURN0), "", "jmp 0x1500"),
        (TAIL, 1, Null, "", "ret; int3; int3; int3; int3"),
        (TAIL, 1, Null, "RETHUNK", "jmp 0x1300"),
        (RETURN, 1, Function(FUNCTION), "", "jmp 0x1400"),
        // Bit 1 says that the site is init code.
        (TAIL, 3, Function(FUNCTION), "", "jmp 0x1400"),
    ] {
        let became = static_call(site, tail, target, features).unwrap();
        assert_eq!(became, expected, "{site:02x?} {tail} {target:?} {features}");
    }
}

#[test]
fn the_middle_of_an_instruction_is_refused() {
    for (site, tail, why) in [
        (&[0, 1, 0, 0, 0xc3][..], 0, "its site is not a call, the NOP of 5 bytes or a zero"),
        (CALL, 1, "its site is not a jump or a return"),
        (TAIL, 0, "its site is not a call, the NOP of 5 bytes or a zero"),
    ] {
        let refused = static_call(site, tail, CallTarget::Null, "").unwrap_err();
        assert!(refused.starts_with("static call 0 of section 3: ") && refused.contains(why), "{refused}");
    }
}

#[test]
fn a_trampoline_is_known_by_what_stands_behind_it() {
    let facts = facts("");
    let calls = StaticCalls { facts: &facts, return0: None };
    let why = EditOrigin { engine: Engine::StaticCall, section: 5, record: 8 };
    let mut there = TAIL.to_vec();
    there.extend([0x0f, 0xb9, 0xcc]); // ud1 %esp,%ecx
    let (mut space, _) = space(&there, &[0]);
    trampoline(TEXT, CallTarget::Function(FUNCTION), calls, why, &mut space).unwrap();
    assert_eq!(disassembled(TEXT, space.bytes(TEXT, 5).unwrap()), "jmp 0x1400");
    trampoline(TEXT, CallTarget::Null, calls, why, &mut space).unwrap();
    assert_eq!(space.bytes(TEXT, 5), Some(RETURN));
    let refused = trampoline(TEXT + 0x100, CallTarget::Null, calls, why, &mut space).unwrap_err().to_string();
    assert!(refused.starts_with("static call 8 of section 5: its site is not a trampoline"), "{refused}");
}
