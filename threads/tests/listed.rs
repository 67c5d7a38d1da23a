//! Sections of call frame information: the descriptions found in them, the sections refused, and that no mutant does
//! harm.

use std::ops::{ControlFlow, Range};

use modload_threads::frames::{self, Flaw, Malformed, Memory, Planned, Register, Registers, walk};
use object::{Object, ObjectSection};

/// Common information as gcc writes it: `zR`, addresses relative to their place, CFA rsp+8, return address at CFA-8.
fn common() -> Vec<u8> {
    let body = [
        0, 0, 0, 0, // common information
        1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, // version, "zR", factors 1 and -8, rip, pcrel sdata4
        0x0c, 7, 8, 0x90, 1, 0, 0, // def_cfa rsp+8; offset rip, cfa-8; nop; nop
    ];
    [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat()
}

/// Adds a description of `len` bytes from `start`, for a section at the address `section`.
fn describe(bytes: &mut Vec<u8>, section: u64, start: u64, len: u32, program: &[u8]) {
    let at = u64::try_from(bytes.len()).unwrap();
    let pointer = i32::try_from(start.wrapping_sub(section + at + 8).cast_signed()).unwrap();
    let mut body = Vec::new();
    body.extend(u32::try_from(at + 4).unwrap().to_le_bytes());
    body.extend(pointer.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.push(0);
    body.extend(program);
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
}

fn plan(bytes: &[u8], at: u64, texts: &[Range<u64>]) -> Result<Vec<Planned>, Malformed> {
    frames::plan([(bytes, at)], &[], texts)
}

const SECTION: u64 = 0x7000;

fn section(functions: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = common();
    for (start, len) in functions {
        describe(&mut bytes, SECTION, *start, *len, &[]);
    }
    bytes
}

const TEXTS: [Range<u64>; 2] = [0x1000..0x2000, 0x5000..0x5100];

#[test]
fn descriptions_are_sorted_by_their_text() {
    let bytes = section(&[(0x1100, 16), (0x5000, 0x100), (0x1000, 0x100), (0, 16), (0x1800, 0)]);
    let planned = plan(&bytes, SECTION, &TEXTS).unwrap();
    assert_eq!(planned.iter().map(|text| text.len()).collect::<Vec<_>>(), [2, 1]);
    let terminated = [&bytes[..], &[0; 4]].concat();
    assert_eq!(plan(&terminated, SECTION, &TEXTS).unwrap()[0].len(), 2);
    assert!(plan(&[], SECTION, &TEXTS).unwrap().iter().all(|text| text.is_empty()));
}

#[test]
fn sections_are_taken_together() {
    let first = section(&[(0x1100, 16)]);
    let mut second = common();
    describe(&mut second, SECTION + 0x100, 0x1000, 16, &[]);
    let both = [(&first[..], SECTION), (&second[..], SECTION + 0x100)];
    assert_eq!(frames::plan(both, &[], &TEXTS).unwrap()[0].len(), 2);
    let again = frames::plan([both[0], both[1], both[1]], &[], &TEXTS).unwrap_err();
    assert!(matches!(again, Malformed::Twice { first: 0x18, second: 0x18, address: 0x1000 }), "{again:?}");
}

#[test]
fn code_that_only_branches_has_the_frame_of_an_entry() {
    let text = 0x4321_0000_1000..0x4321_0000_2000;
    let at = text.start + 0x1_0000;
    let mut bytes = common();
    describe(&mut bytes, at, text.start, 16, &[0x0e, 16]); // def_cfa_offset 16
    let branches = [text.start + 0x100..text.start + 0x120, text.start + 0x200..text.start + 0x200];
    let planned = frames::plan([(&bytes[..], at)], &branches, std::slice::from_ref(&text)).unwrap().pop().unwrap();
    assert_eq!(planned.len(), 2);
    let _known = planned.publish().unwrap();
    let distance = |offset: u64| {
        let registers = Registers::unknown().with(Register::RIP, text.start + offset).with(Register::RSP, 0x1000);
        let mut distance = None;
        let _ = walk(&registers, Uniform(0), |frame| {
            distance = Some(frame.cfa - 0x1000);
            ControlFlow::Break(())
        });
        distance
    };
    assert_eq!(
        [0, 15, 16, 0xff, 0x100, 0x11f, 0x120].map(distance),
        [Some(16), Some(16), None, None, Some(8), Some(8), None]
    );
    let alone = frames::plan([], &branches, std::slice::from_ref(&text)).unwrap();
    assert!(alone[0].is_empty(), "a module that describes nothing costs nothing");
    let over = text.start + 8..text.start + 24;
    let twice = frames::plan([(&bytes[..], at)], std::slice::from_ref(&over), std::slice::from_ref(&text));
    assert!(matches!(twice, Err(Malformed::Twice { .. })), "{twice:?}");
}

#[track_caller]
fn refused(functions: &[(u64, u32)], expected: &str) {
    assert_eq!(plan(&section(functions), SECTION, &TEXTS).unwrap_err().to_string(), expected);
}

#[test]
fn what_is_described_is_the_modules_text_and_once() {
    let elsewhere =
        |range: &str| format!("the entry at offset 0x18 describes {range}, which is not text of this module");
    refused(&[(0xfff, 2)], &elsewhere("0xfff to 0x1001"));
    refused(&[(0x50ff, 2)], &elsewhere("0x50ff to 0x5101"));
    refused(&[(0x3000, 2)], &elsewhere("0x3000 to 0x3002"));
    let twice = "the entries at offsets 0x29 and 0x18 describe the same address, 0x1010";
    refused(&[(0x1010, 8), (0x1008, 9)], twice);
}

#[test]
fn what_cannot_be_read_says_where() {
    let good = section(&[(0x1000, 16), (0x1010, 16)]);
    let mut no_common = good.clone();
    no_common[0x29 + 4] = 0x2e; // of the second description: before the section
    let failed = plan(&no_common, SECTION, &TEXTS).unwrap_err();
    assert!(matches!(failed, Malformed::Entry { at: 0x29, flaw: Flaw::NoCommon }), "{failed:?}");
    for (cut, at) in [(3, 0), (7, 0), (20, 0), (26, 0x18), (40, 0x18)] {
        let cut_off = Malformed::Entry { at, flaw: Flaw::CutOff };
        assert_eq!(plan(&good[..cut], SECTION, &TEXTS).unwrap_err(), cut_off, "cut at {cut}");
    }
    for (place, byte, flaw) in [
        (0, 0xff, Flaw::CutOff),
        (8, 2, Flaw::Version(2)),
        (9, b'y', Flaw::Letter(b'y')),
        (10, b'B', Flaw::Letter(b'B')),
        (14, 17, Flaw::ReturnAddress(17)),
        (16, 0x3b, Flaw::Encoding(0x3b)), // datarel
        (16, 0x9b, Flaw::Encoding(0x9b)), // indirect
        (16, 0x11, Flaw::Encoding(0x11)), // of variable length
        (17, 0x01, Flaw::Instruction(1)), // DW_CFA_set_loc
        (17, 0x1f, Flaw::Instruction(0x1f)),
        (23, 0x0f, Flaw::CutOff), // a block without its length
    ] {
        let mut bad = good.clone();
        bad[place] = byte;
        // The encoding is used by the first function.
        let at = if matches!(flaw, Flaw::Encoding(0x3b | 0x11)) { 0x18 } else { 0 };
        assert_eq!(plan(&bad, SECTION, &TEXTS).unwrap_err(), Malformed::Entry { at, flaw });
    }
    let mut wide = good;
    wide[..4].fill(0xff);
    assert_eq!(plan(&wide, SECTION, &TEXTS).unwrap_err(), Malformed::Entry { at: 0, flaw: Flaw::Wide });
}

/// Memory with the same contents everywhere, which serves as a stack.
struct Uniform(u64);

impl Memory for Uniform {
    fn read(&mut self, _: u64, into: &mut [u8]) -> bool {
        into.copy_from_slice(&self.0.to_le_bytes());
        true
    }
}

/// Walks from an address, 100 frames at most, on a stack where every word is an address of the text.
fn walk_from(pc: u64, word: u64) -> usize {
    let registers = Registers::unknown();
    let registers = Register::ALL.into_iter().fold(registers, |all, register| all.with(register, 0x10_0000));
    let mut frames = 0;
    let _ = walk(&registers.with(Register::RIP, pc), Uniform(word), |_| {
        frames += 1;
        if frames < 100 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    frames
}

/// Returns the C library's `.eh_frame`, the address for which it is linked, and the range of the library's texts.
fn libc_section() -> (Vec<u8>, u64, Range<u64>) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().find_map(|line| line.split_whitespace().last().filter(|path| path.contains("/libc.so.6")));
    let file = std::fs::read(path.expect("the C library is mapped")).unwrap();
    let file = object::File::parse(&*file).unwrap();
    let section = file.section_by_name(".eh_frame").unwrap();
    let texts = file.sections().filter(|section| section.kind() == object::SectionKind::Text);
    let ranges: Vec<_> = texts.map(|text| text.address()..text.address() + text.size()).collect();
    let start = ranges.iter().map(|range| range.start).min().unwrap();
    let end = ranges.iter().map(|range| range.end).max().unwrap();
    (section.data().unwrap().to_vec(), section.address(), start..end)
}

#[test]
fn mutants_of_the_c_librarys_section_do_no_harm() {
    let (original, linked_at, text) = libc_section();
    // The first 24 KiB, up to the end of an entry. This part contains the special entries, of PLT and signal return, which
    // come first.
    let whole = plan(&original, linked_at, std::slice::from_ref(&text)).unwrap();
    assert!(whole[0].len() > 3000, "{}", whole[0].len());
    let mut end = 0;
    while end < 24 << 10 {
        end += 4 + usize::try_from(u32::from_le_bytes(original[end..end + 4].try_into().unwrap())).unwrap();
    }
    let mut mutant = original[..end].to_vec();
    // An address that no mapping uses.
    let at = 0x1234_0000_0000_u64;
    let shift = at.wrapping_sub(linked_at);
    let text = text.start.wrapping_add(shift)..text.end.wrapping_add(shift);
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % bound
    };
    let (mut refused, mut walked, mut frames) = (0, 0, 0);
    for round in 0..2000 {
        let mutations: Vec<(usize, u8)> = (0..=next(3))
            .map(|_| (usize::try_from(next(u64::try_from(end).unwrap())).unwrap(), u8::try_from(next(256)).unwrap()))
            .collect();
        let saved: Vec<(usize, u8)> = mutations.iter().map(|(place, _)| (*place, mutant[*place])).collect();
        for (place, byte) in &mutations {
            mutant[*place] = *byte;
        }
        match plan(&mutant, at, std::slice::from_ref(&text)) {
            Err(_) => refused += 1,
            Ok(planned) => {
                for planned in planned {
                    let known = planned.publish().unwrap();
                    for _ in 0..50 {
                        let pc = text.start + next(text.end - text.start);
                        frames += walk_from(pc, pc);
                        walked += 1;
                    }
                    drop(known);
                }
            }
        }
        for (place, byte) in saved.into_iter().rev() {
            mutant[place] = byte;
        }
        assert_eq!(mutant, original[..end], "in round {round}");
    }
    assert!(refused > 100 && walked > 10_000 && frames > 1000, "{refused} refused, {walked} walked, {frames} frames");
}
