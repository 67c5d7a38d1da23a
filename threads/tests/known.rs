//! Rows that are added and withdrawn: which threads find them, and that no thread finds a withdrawn row.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use modload_threads::frames::{BadRows, Ended, Known, Memory, Register, Registers, Row, WalkError, walk};

/// A stack in which every word has the same value.
struct Uniform(u64);

impl Memory for Uniform {
    fn read(&mut self, _: u64, into: &mut [u8]) -> bool {
        into.copy_from_slice(&self.0.to_le_bytes());
        true
    }
}

/// Returns the registers of a thread at an address.
fn at(pc: u64) -> Registers {
    Registers::unknown().with(Register::RIP, pc).with(Register::RSP, 0x1000)
}

/// Returns a row that has no caller, with a CFA that identifies the row.
fn outermost(mark: i32) -> Row {
    Row { from: 0, cfa: (Register::RSP, mark * 8), saved: Vec::new() }
}

/// Returns the mark of the row that is known for an address.
fn mark(pc: u64) -> Option<u64> {
    let mut cfa = None;
    let ended = walk(&at(pc), Uniform(0), |frame| {
        cfa = Some((frame.cfa - 0x1000) / 8);
        ControlFlow::Continue(())
    });
    match ended {
        Ok(Ended::Outermost) => cfa,
        Err(WalkError::NoRow { pc: where_it_is }) if where_it_is == pc => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rows_are_found_in_their_range_alone() {
    let base = 0x10_0000;
    let known = Known::stated(base..base + 16, &[outermost(1)]).unwrap();
    assert_eq!([base - 1, base, base + 15, base + 16].map(mark), [None, Some(1), Some(1), None]);
    drop(known);
    assert_eq!(mark(base), None);
}

#[test]
fn a_range_has_one_owner() {
    let base = 0x20_0000;
    let _known = Known::stated(base..base + 16, &[outermost(1)]).unwrap();
    for (start, end) in [(0, 16), (15, 20), (-4, 1), (-4, 20), (4, 5)] {
        let [start, end] = [start, end].map(|offset| base.wrapping_add_signed(offset));
        match Known::stated(start..end, &[outermost(2)]) {
            Err(BadRows::Overlap(overlap)) => assert_eq!((overlap.start, overlap.end), (base, base + 16)),
            other => panic!("{start:#x}..{end:#x}: {other:?}"),
        }
    }
    let before = Known::stated(base - 4..base, &[outermost(3)]).unwrap();
    let behind = Known::stated(base + 16..base + 20, &[outermost(4)]).unwrap();
    assert_eq!([base - 1, base, base + 16].map(mark), [Some(3), Some(1), Some(4)]);
    drop((before, behind));
}

#[test]
fn stated_rows_are_in_order() {
    let base = 0x30_0000;
    let row = |from| Row { from, ..Row::at_entry() };
    let refused = |rows: Vec<Row>| Known::stated(base..base + 64, &rows).unwrap_err();
    assert_eq!(refused(vec![]), BadRows::Order { row: 0, from: 0 });
    assert_eq!(refused(vec![row(1)]), BadRows::Order { row: 0, from: 1 });
    assert_eq!(refused(vec![row(0), row(4), row(4)]), BadRows::Order { row: 2, from: 4 });
    assert_eq!(Known::stated(base..base, &[row(0)]).unwrap_err(), BadRows::Length);
    let backwards = Row { cfa: (Register::RIP, 8), ..Row::at_entry() };
    assert_eq!(refused(vec![backwards]), BadRows::Cfa { row: 0 });
}

#[test]
fn a_stated_row_leads_to_its_caller() {
    let base = 0x40_0000;
    let rows = vec![
        Row::at_entry(),
        Row { from: 4, cfa: (Register::RBP, 16), saved: vec![(Register::RIP, -8), (Register::RBP, -16)] },
    ];
    let _known = Known::stated(base..base + 16, &rows).unwrap();
    let _caller = Known::stated(base + 0x100..base + 0x110, &[outermost(0x100)]).unwrap();
    // A return address is looked up by the byte before it.
    let return_address = base + 0x110;
    let steps = |registers: Registers| {
        let mut seen = Vec::new();
        let ended = walk(&registers, Uniform(return_address), |frame| {
            seen.push((frame.pc, frame.cfa, frame.is_exact));
            ControlFlow::Continue(())
        });
        assert_eq!(ended, Ok(Ended::Outermost));
        seen
    };
    assert_eq!(steps(at(base)), [(base, 0x1008, true), (return_address, 0x1008 + 0x800, false)]);
    let with_frame = at(base + 4).with(Register::RBP, 0x2000);
    assert_eq!(steps(with_frame), [(base + 4, 0x2010, true), (return_address, 0x2010 + 0x800, false)]);
    let nothing_seen = |registers: Registers| walk(&registers, Uniform(0), |_| ControlFlow::Continue(()));
    let unknown = WalkError::UnknownRegister { pc: base + 4, register: Register::RBP };
    assert_eq!(nothing_seen(at(base + 4)), Err(unknown));
    let below = at(base + 4).with(Register::RBP, 0x800);
    assert_eq!(nothing_seen(below), Err(WalkError::BadCfa { pc: base + 4, cfa: 0x810 }));
    let odd = at(base + 4).with(Register::RBP, 0x2001);
    assert_eq!(nothing_seen(odd), Err(WalkError::BadCfa { pc: base + 4, cfa: 0x2011 }));
    assert_eq!(nothing_seen(Registers::unknown()), Err(WalkError::NowhereToBegin));
}

#[test]
fn a_stack_that_goes_on_for_ever_is_too_deep() {
    let base = 0x50_0000;
    let _known = Known::stated(base..base + 16, &[Row::at_entry()]).unwrap();
    let mut frames = 0_usize;
    let ended = walk(&at(base), Uniform(base + 1), |_| {
        frames += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((ended, frames), (Err(WalkError::TooDeep), modload_threads::frames::DEEPEST));
}

#[test]
fn many_ranges_come_and_go_in_any_order() {
    let base = 0x1000_0000;
    let mut model: BTreeMap<u64, (Known, i32)> = BTreeMap::new();
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..6000 {
        chance ^= chance >> 12;
        chance ^= chance << 25;
        chance ^= chance >> 27;
        // Up to 700 ranges: at least eleven chunks, which are split and emptied.
        let start = base + chance % 700 * 16;
        if model.remove(&start).is_some() {
            assert_eq!(mark(start), None, "withdrawn in round {round}");
        } else {
            let known = Known::stated(start..start + 12, &[outermost(round + 1)]).unwrap();
            model.insert(start, (known, round + 1));
        }
        if round % 100 == 0 {
            for slot in 0..700 {
                let start = base + slot * 16;
                let expected = model.get(&start).map(|(_, mark)| u64::try_from(*mark).unwrap());
                assert_eq!([start, start + 11].map(mark), [expected, expected], "in round {round}");
                assert_eq!(mark(start + 12), None);
            }
        }
    }
    assert!(model.len() > 200, "half of them are there at the end");
    model.clear();
    assert!((0..700).all(|slot| mark(base + slot * 16).is_none()));
}

#[test]
fn walks_beside_changes_see_what_stands_still() {
    let base = 0x2000_0000;
    let _fixed: Vec<Known> = (0..200)
        .map(|slot| {
            let start = base + slot * 64;
            Known::stated(start..start + 16, &[outermost(i32::try_from(slot).unwrap() + 1)]).unwrap()
        })
        .collect();
    let done = AtomicBool::new(false);
    let walks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut slot = 0;
                while !done.load(Ordering::Relaxed) {
                    slot = (slot + 7) % 200;
                    assert_eq!(mark(base + slot * 64), Some(slot + 1));
                    // A temporary range is known or not, but never has another range's row.
                    let passing = mark(base + slot * 64 + 32);
                    assert!(passing.is_none_or(|mark| mark == slot + 1001), "{passing:?}");
                    walks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..2_000_u64 {
            let slot = round * 13 % 200;
            let start = base + slot * 64 + 32;
            let mark = i32::try_from(slot).unwrap() + 1001;
            drop(Known::stated(start..start + 16, &[outermost(mark)]).unwrap());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(walks.load(Ordering::Relaxed) > 100);
}
