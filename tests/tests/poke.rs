//! Published text that changes while threads run through it.

use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use modload_edit::{Addr, Edit, EditSet, Engine, NOPS, Rejected, Sink, Why, ZERO};
use modload_tests::{Case, Chance, Sites, in_fork, peek};
use modload_text::{TextLock, TrapMask, Way, poke};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("every_form_is_off_and_on", every_form),
        Case::new("a_batch_takes_three_synchronisations", three_synchronisations),
        Case::new("under_fire_by_traps", || under_fire(TrapMask::Trusted, 10_000)).within_seconds(120),
        Case::new("what_is_wrong_is_refused_and_nothing_is_written", refusals),
    ])
}

fn every_form() {
    let sites = Sites::publish(64, 61, None);
    let all = || 0..sites.len();
    for state in [0, 1, 0, 1] {
        assert!(all().all(|number| sites.call(number) == sites.returns(number)[state]), "{state}");
        let batch = if state == 0 { sites.on(all()) } else { sites.off(all()) };
        poke(&mut TextLock::take(), &batch, TrapMask::Trusted).unwrap();
    }
}

fn three_synchronisations() {
    let sites = Sites::publish(1000, 64, Some(0));
    for count in [1, 10, 1000] {
        for batch in [sites.on(0..count), sites.off(0..count)] {
            let poked = poke(&mut TextLock::take(), &batch, TrapMask::Trusted).unwrap();
            assert_eq!((poked.way, poked.syncs, poked.writes), (Way::Traps, 3, 3));
        }
    }
}

/// The state of all sites for those who call them: twice the number of the batch when it is complete, one more while the
/// next is under way.
static STATE: AtomicU64 = AtomicU64::new(0);

fn caller(sites: &Sites, seed: u64, stop: &AtomicBool) -> u64 {
    let mut chance = Chance::new(seed);
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        let first = chance.below(sites.len());
        for number in (first..sites.len()).take(256) {
            check_call(sites, number);
            calls += 1;
        }
    }
    calls
}

fn check_call(sites: &Sites, number: usize) {
    let before = STATE.load(Ordering::SeqCst);
    let result = sites.call(number);
    let after = STATE.load(Ordering::SeqCst);
    let allowed = sites.returns(number);
    if before == after && before.is_multiple_of(2) {
        let now = modload_edit::index(before / 2 % 2);
        assert_eq!(result, allowed[now], "site {number} after batch {}", before / 2);
    } else {
        assert!(allowed.contains(&result), "site {number}: {result}");
    }
}

fn under_fire(mask: TrapMask, flips: u64) {
    let sites = Sites::publish(10_000, 61, None);
    let batches = [sites.on(0..sites.len()), sites.off(0..sites.len())];
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let calls: u64 = thread::scope(|scope| {
        let callers: Vec<_> = (1..=4)
            .map(|seed| {
                scope.spawn({
                    let (sites, stop) = (&sites, &stop);
                    move || caller(sites, seed, stop)
                })
            })
            .collect();
        // Threads that start and end.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                thread::scope(|short| {
                    short.spawn(|| (0..64).for_each(|number| check_call(&sites, number * 100)));
                });
            }
        });
        // Signals whose handler calls through the sites, in whichever thread they find.
        scope.spawn(|| interrupt(&sites, &stop));
        // A child that is forked in between finds whole sites, and can poke its own.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fork_and_poke(&sites, &batches);
                thread::sleep(Duration::from_millis(50));
            }
        });
        for flip in 0..flips {
            STATE.fetch_add(1, Ordering::SeqCst);
            poke(&mut TextLock::take(), &batches[modload_edit::index(flip % 2)], mask).unwrap();
            STATE.fetch_add(1, Ordering::SeqCst);
        }
        stop.store(true, Ordering::Relaxed);
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!("{mask:?}: {flips} flips of {} sites, {calls} calls in {seconds:.1} s", sites.len());
    assert!(calls > flips, "the callers have hardly run");
}

static INTERRUPTED: AtomicPtr<Sites> = AtomicPtr::new(ptr::null_mut());
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: points to the sites for as long as signals are sent, and is never written through.
    if let Some(sites) = unsafe { INTERRUPTED.load(Ordering::SeqCst).as_ref() } {
        for number in 0..32 {
            let result = sites.call(number * 7);
            if !sites.returns(number * 7).contains(&result) {
                std::process::abort();
            }
        }
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
}

fn interrupt(sites: &Sites, stop: &AtomicBool) {
    INTERRUPTED.store(ptr::from_ref(sites).cast_mut(), Ordering::SeqCst);
    let handler: extern "C" fn(libc::c_int) = on_signal;
    #[expect(clippy::as_conversions, reason = "signal takes the handler's address as an integer")]
    let handler = handler as libc::sighandler_t;
    // SAFETY: the handler calls functions of ours that take nothing and allocate nothing.
    unsafe { libc::signal(libc::SIGUSR1, handler) };
    let here = std::process::id().cast_signed();
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: sends a signal to this process, which has a handler for it.
        unsafe { libc::kill(here, libc::SIGUSR1) };
        thread::sleep(Duration::from_micros(200));
    }
    // SAFETY: ignores the signal from here on; the handler has read the pointer for the last time, or reads null.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
    INTERRUPTED.store(ptr::null_mut(), Ordering::SeqCst);
    thread::sleep(Duration::from_millis(10));
    assert!(HANDLED.load(Ordering::Relaxed) > 0);
}

/// In a child, which has one thread: all sites are in one state, and go to the other and back.
fn fork_and_poke(sites: &Sites, batches: &[EditSet; 2]) {
    in_fork(|| {
        let state = usize::from(sites.call(0) == sites.returns(0)[1]);
        for state in [state, 1 - state] {
            let all = 0..sites.len();
            assert!(all.clone().all(|number| sites.call(number) == sites.returns(number)[state]), "half a batch");
            poke(&mut TextLock::take(), &batches[state], TrapMask::Trusted).unwrap();
            assert!(all.clone().all(|number| sites.call(number) == sites.returns(number)[1 - state]), "half a batch");
        }
    })
    .well();
}

const WHY: Why = Why { engine: Engine::JumpLabel, section: 3, record: 9 };

fn one(at: Addr, old: &[u8], new: &[u8]) -> EditSet {
    let mut edits = EditSet::new();
    edits.edit(Edit { at, old, new, why: WHY }).unwrap();
    edits
}

fn refusals() {
    let sites = Sites::publish(8, 61, None);
    let before = peek(sites.base(), 8 * 61);
    let refused = |edits: EditSet| {
        let mut all = sites.on(0..4);
        edits.iter().for_each(|edit| all.edit(edit).unwrap());
        let refused = poke(&mut TextLock::take(), &all, TrapMask::Trusted).unwrap_err();
        assert_eq!(peek(sites.base(), 8 * 61), before, "something was written");
        let at = edits.iter().next().unwrap().at;
        refused.to_string().replace(&at.to_string(), "SITE")
    };
    let nop = NOPS[5];
    let (mov, nop6, zero, end) = (sites.at(5).offset(-5), sites.at(5), sites.at(4), sites.base() + 8 * 61);
    let lines = [
        refused(one(nop6, &[0x90; 6], nop)),
        refused(one(nop6, nop, &[0x90; 6])),
        refused(one(nop6, nop, &[0x81, 0xc0, 0, 0, 0, 0])),
        refused(one(nop6, nop, &[0xff; 6])),
        refused(one(mov, &[0xb8, 1, 0, 0, 0, 0x66], nop)),
        refused(one(zero, &ZERO[..4], NOPS[3])),
        refused(one(end.offset(-3), &[0xcc; 5], NOPS[4])),
        refused(one(end + 0x10_0000, &[0xcc; 5], NOPS[4])),
        refused(one(Addr::NULL, &[0xcc; 5], NOPS[4])),
    ];
    insta::assert_snapshot!(lines.join("\n"));
    let straddled = sites.on([5]).edit(Edit { at: nop6 + 2, old: &[0; 5], new: &[0; 5], why: WHY });
    assert!(matches!(straddled, Err(Rejected::Collision { .. })));
    let poked = poke(&mut TextLock::take(), &sites.on(0..8), TrapMask::Trusted).unwrap();
    assert_eq!(poked.way, Way::Traps);
}
