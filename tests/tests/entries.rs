//! Entries of the host's own functions: calls are redirected through an annex into the arena and back, while threads
//! call the functions. A function tracer does the same.

use std::ops::{ControlFlow, Range};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use modload_edit::{Addr, Edit, EditOrigin, EditSet, Engine, NOPS, Sink, index, wide};
use modload_tests::{Case, Patience, peek};
use modload_text::{
    Annex, Arena, Describe, HostText, INT3, PokeError, PokeProtocol, Poked, Published, TextLock, TrapMask,
    TrapObstacle, fill, poke, traps_in_flight,
};
use modload_threads::frames::{Ended, each_stack, know_process};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("five_nops_are_led_to_the_arena_and_back", || five_nops(TrapMask::Trusted, 10_000))
            .within_seconds(240),
        Case::new("calls_of_fentry_are_led_to_the_arena_and_back", || fentry(TrapMask::Trusted, 10_000))
            .within_seconds(240)
            .needing("gcc"),
        Case::new("five_nops_by_rendezvous", || five_nops(TrapMask::Held, 100)).within_seconds(120),
        Case::new("calls_of_fentry_by_rendezvous", || fentry(TrapMask::Held, 100)).within_seconds(120).needing("gcc"),
    ])
}

type Function = extern "C" fn(i32) -> i32;

const COUNT: usize = 8;

// entries.c: functions that add 1 to 8, and the bounds of the table of their sites.
#[link(name = "entries", kind = "static")]
unsafe extern "C" {
    static patchable_functions: [Function; COUNT];
    static patchable_sites: [u64; 2];
    static counted_functions: [Function; COUNT];
    static counted_sites: [u64; 2];
}

/// Functions with a site each, of the same form.
struct Entries {
    functions: [Function; COUNT],
    sites: Vec<Addr>,
    /// The bytes of a site that is off: one NOP.
    off: &'static [u8],
    /// How a call begins that is as long.
    call: &'static [u8],
    /// Twice the number of flips, one more while one is under way.
    state: AtomicU64,
    stop: AtomicBool,
}

/// The number that a function adds if its calls are redirected to the arena.
const LED: i32 = 1000;

impl Entries {
    fn new(functions: [Function; COUNT], [start, end]: [u64; 2], off: &'static [u8], call: &'static [u8]) -> Entries {
        let table = peek(Addr::new(start), index(end - start));
        let address = |bytes: &[u8]| Addr::new(u64::from_le_bytes(bytes.try_into().unwrap()));
        let mut sites: Vec<_> = table.chunks(8).map(address).collect();
        sites.sort_unstable();
        #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
        let mut begins = functions.map(|function| Addr::new(wide((function as *const ()).expose_provenance())));
        begins.sort_unstable();
        assert_eq!(sites, begins, "each function begins with its site");
        assert!(sites[0].get() > 1 << 32, "out of the arena's reach");
        Entries { functions, sites, off, call, state: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    /// Registers the host text with the sites.
    fn register(&self) -> HostText {
        let end = *self.sites.last().unwrap() + wide(self.off.len());
        // SAFETY: the functions belong to this program, and stay. The tests check the effects of the poked
        // instructions.
        unsafe { HostText::register(self.sites[0], end) }.unwrap()
    }

    /// Edits of all sites, from one of their forms to another.
    fn edits(&self, old: impl Fn(Addr) -> Vec<u8>, new: impl Fn(Addr) -> Vec<u8>) -> EditSet {
        let mut edits = EditSet::new();
        for at in &self.sites {
            edits.edit(Edit { at: *at, old: &old(*at), new: &new(*at), why: WHY }).unwrap();
        }
        edits
    }

    fn off(&self) -> impl Fn(Addr) -> Vec<u8> {
        |_| self.off.to_vec()
    }

    /// A call of `to`, which is near.
    fn on(&self, to: Addr) -> impl Fn(Addr) -> Vec<u8> {
        move |at| {
            let distance = i32::try_from(to - (at + wide(self.off.len()))).unwrap();
            [self.call, &distance.to_le_bytes()].concat()
        }
    }

    /// Calls all functions in four threads until `run` has ended. Returns the number of calls.
    fn called(&self, run: impl FnOnce()) -> u64 {
        let begun = AtomicU64::new(0);
        thread::scope(|scope| {
            let callers: Vec<_> = (0..4).map(|_| scope.spawn(|| self.call_until_stopped(&begun))).collect();
            while begun.load(Ordering::SeqCst) < 4 {
                thread::yield_now();
            }
            // A failing test must not leave the threads running, because the scope waits for them.
            let stopped = Stopped(&self.stop);
            run();
            drop(stopped);
            callers.into_iter().map(|caller| caller.join().unwrap()).sum()
        })
    }

    fn call_until_stopped(&self, begun: &AtomicU64) -> u64 {
        begun.fetch_add(1, Ordering::SeqCst);
        let mut calls = 0;
        while !self.stop.load(Ordering::Relaxed) {
            for (function, own) in self.functions.iter().zip(1..) {
                let before = self.state.load(Ordering::SeqCst);
                let result = function(5);
                let after = self.state.load(Ordering::SeqCst);
                let allowed = [5 + own, 5 + LED];
                if before == after && before.is_multiple_of(2) {
                    assert_eq!(result, allowed[index(before / 2 % 2)], "function {own} after flip {}", before / 2);
                } else {
                    assert!(allowed.contains(&result), "function {own}: {result}");
                }
                calls += 1;
            }
        }
        calls
    }

    /// Turns all sites on, or off again.
    fn flip(&self, edits: &EditSet, mask: TrapMask) -> Poked {
        self.state.fetch_add(1, Ordering::SeqCst);
        let poked = patiently(edits, mask);
        self.state.fetch_add(1, Ordering::SeqCst);
        poked
    }

    /// Takes an annex and a trampoline, leads the functions there and back, and frees both while threads go on calling.
    fn round(&self, mask: TrapMask, flips: u64) {
        let trampoline = Trampoline::publish();
        let annex = Annex::near(self.sites[0], *self.sites.last().unwrap() + 16, 64).unwrap();
        // jmp *0(%rip), and the address.
        let jump = [&[0xff, 0x25, 0, 0, 0, 0][..], &trampoline.at.get().to_le_bytes()].concat();
        let mut edits = EditSet::new();
        edits.edit(Edit { at: annex.addr(), old: &[INT3; 14], new: &jump, why: WHY }).unwrap();
        fill(&mut TextLock::take(), &edits).unwrap();
        let on = self.edits(self.off(), self.on(annex.addr()));
        let off = self.edits(self.on(annex.addr()), self.off());
        for flip in 0..flips {
            let poked = self.flip(if flip % 2 == 0 { &on } else { &off }, mask);
            let protocol = if mask == TrapMask::Held {
                PokeProtocol::Rendezvous(TrapObstacle::Requested)
            } else {
                PokeProtocol::Traps
            };
            assert_eq!(poked.protocol, protocol);
        }
        let of = |at: Addr, len: u64| at.get()..at.get() + len;
        nobody_is_in(&[of(annex.addr(), annex.len()), of(trampoline.at, trampoline.len)]);
        drop(annex);
        drop(trampoline);
    }
}

/// Ends the calls on drop.
struct Stopped<'s>(&'s AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const WHY: EditOrigin = EditOrigin { engine: Engine::JumpLabel, section: 0, record: 0 };

/// Pokes. If a thread is between two NOPs that would be joined, or did not get a processor in time, nothing is written,
/// and the poke is tried again.
fn patiently(edits: &EditSet, mask: TrapMask) -> Poked {
    let mut patience = Patience::new();
    loop {
        match poke(&mut TextLock::take(), edits, mask) {
            Ok(poked) => return poked,
            Err(why @ (PokeError::Inside { .. } | PokeError::Threads { .. } | PokeError::NoWalk { .. })) => {
                patience.turn(|| why.to_string());
            }
            Err(other) => panic!("{other}: {:?}", std::error::Error::source(&other).map(ToString::to_string)),
        }
    }
}

/// Returns when no thread is in code that no site leads to any more, and no thread is on the way to that code.
fn nobody_is_in(ranges: &[Range<u64>]) {
    let mut patience = Patience::new();
    loop {
        // A thread without rows, for example in the trampoline, is checked again.
        let clear = traps_in_flight() == 0
            && each_stack(
                |_| true,
                |clear, stack| {
                    let walked = stack.walk(|frame| match ranges.iter().any(|range| range.contains(&frame.pc)) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    });
                    *clear &= walked == Ok(Ended::Outermost);
                },
            )
            .unwrap();
        if clear {
            return;
        }
        patience.turn(|| "everybody has left the trampoline".to_owned());
    }
}

/// Code in the arena that returns to the caller in place of a function.
struct Trampoline {
    _text: Published,
    at: Addr,
    len: u64,
}

struct Named;

impl Describe for Named {
    fn module(&self) -> &'static str {
        "trampoline"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

impl Trampoline {
    fn publish() -> Trampoline {
        // lea 1000(%rdi),%eax; add $8,%rsp; ret
        const CODE: [u8; 11] = [0x8d, 0x87, 0xe8, 0x03, 0, 0, 0x48, 0x83, 0xc4, 0x08, 0xc3];
        let mut staged = Arena::get().unwrap().stage_text(wide(CODE.len()), 16).unwrap();
        staged.bytes_mut().copy_from_slice(&CODE);
        staged.set_owner(Arc::new(Named));
        let at = staged.addr();
        let text = staged.publish(&mut TextLock::take()).unwrap();
        Trampoline { _text: text, at, len: wide(CODE.len()) }
    }
}

/// Ten rounds, with an annex and a trampoline of their own each.
fn rounds(entries: &Entries, mask: TrapMask, flips: u64) {
    for _ in 0..10 {
        entries.round(mask, flips / 10);
    }
}

fn five_nops(mask: TrapMask, flips: u64) {
    know_process().unwrap();
    // SAFETY: constants of entries.c, of the types that are stated.
    let functions = unsafe { patchable_functions };
    // SAFETY: as above.
    let sites = unsafe { patchable_sites };
    let entries = Entries::new(functions, sites, NOPS[4], &[0xe8]);
    Arena::get().unwrap();
    let _text = entries.register();
    let calls = entries.called(|| {
        let joined = patiently(&entries.edits(|_| vec![0x90; 5], entries.off()), mask);
        let obstacle = if mask == TrapMask::Held { TrapObstacle::Requested } else { TrapObstacle::JoinedNops };
        assert_eq!(joined.protocol, PokeProtocol::Rendezvous(obstacle));
        rounds(&entries, mask, flips);
    });
    println!("{mask:?}: {flips} flips, {calls} calls");
    assert!(calls > flips);
}

fn fentry(mask: TrapMask, flips: u64) {
    know_process().unwrap();
    // SAFETY: constants of entries.c, of the types that are stated.
    let functions = unsafe { counted_functions };
    // SAFETY: as above.
    let sites = unsafe { counted_sites };
    let entries = Entries::new(functions, sites, NOPS[5], &[0x67, 0xe8]);
    Arena::get().unwrap();
    let _text = entries.register();
    let calls = entries.called(|| {
        // call *__fentry__@GOTPCREL(%rip)
        let begin = |at: Addr| peek(at, 6);
        assert!(entries.sites.iter().all(|at| begin(*at).starts_with(&[0xff, 0x15])));
        let original: Vec<_> = entries.sites.iter().map(|at| (*at, begin(*at))).collect();
        let original = |at: Addr| original.iter().find(|(site, _)| *site == at).unwrap().1.clone();
        patiently(&entries.edits(original, entries.off()), mask);
        rounds(&entries, mask, flips);
        patiently(&entries.edits(entries.off(), original), mask);
        assert!(entries.sites.iter().all(|at| begin(*at) == original(*at)), "as the compiler made them");
    });
    println!("{mask:?}: {flips} flips, {calls} calls");
    assert!(calls > flips);
}
