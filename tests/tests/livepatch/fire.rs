//! Patches are enabled and disabled while threads call functions: the versions that each thread sees, and the resources
//! that are left.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use modload::Module;
use modload::patch::PatchSpec;
use modload_tests::Chance;

use crate::checkpoints;
use crate::other::Other;
use crate::scene::{NEW, TARGET, built, call, func, host, patch, settled};

/// Two functions that change together, and one that calls both, first the one and then the other.
const PAIR: &str = "
__attribute__((noinline)) int first(void) { __asm__ volatile(\"\"); return 0; }
__attribute__((noinline)) int second(void) { __asm__ volatile(\"\"); return 0; }
int new_first(void) { return 1; }
int new_second(void) { return 1; }
__attribute__((noinline)) int look(int unused) { int a = first(), b = second(); return a * 2 + b; }
";

pub(crate) fn nobody_sees_new_then_old() {
    /// Even: no transition. 1 of 4: the functions are being patched; 3 of 4: they are being unpatched.
    static PHASE: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    /// The versions that were seen within one phase, by the phase.
    static SEEN: [[AtomicUsize; 4]; 4] = [const { [const { AtomicUsize::new(0) }; 4] }; 4];
    let host = host();
    let pair = host.load(&built("pair", PAIR)).unwrap();
    let look = || {
        let pair = pair.clone();
        move || {
            while !STOP.load(Ordering::Relaxed) {
                let before = PHASE.load(Ordering::SeqCst);
                let seen = usize::try_from(call(&pair, "look", 0)).unwrap();
                if PHASE.load(Ordering::SeqCst) == before {
                    SEEN[before % 4][seen].fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(look())).collect();
    let begun = Instant::now();
    let mut cycles = 0;
    while begun.elapsed() < Duration::from_secs(10) || cycles <= 10 {
        let funcs = vec![func("first", &pair, "new_first"), func("second", &pair, "new_second")];
        PHASE.fetch_add(1, Ordering::SeqCst);
        host.enable_patch("first", patch("pair", funcs), None).unwrap();
        settled(&host);
        PHASE.fetch_add(1, Ordering::SeqCst);
        thread::yield_now();
        PHASE.fetch_add(1, Ordering::SeqCst);
        host.disable_patch("first").unwrap();
        settled(&host);
        PHASE.fetch_add(1, Ordering::SeqCst);
        thread::yield_now();
        cycles += 1;
    }
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{cycles} cycles; old and old, old and new, new and old, new and new, by phase: {SEEN:?}");
    let seen = |phase: usize, what: usize| SEEN[phase][what].load(Ordering::Relaxed);
    // Without a transition, all threads see the same version twice.
    for (phase, same) in [(0, 0), (2, 3)] {
        assert!((0..4).all(|what| what == same || seen(phase, what) == 0));
        assert!(seen(phase, same) > 0);
    }
    // A thread that has migrated does not go back.
    assert_eq!((seen(1, 2), seen(3, 1)), (0, 0));
    assert!(cycles > 10);
}

/// Functions that return their versions. One of them takes long.
const VERSIONS: &str = "
static volatile int sink;
__attribute__((noinline)) int version(void) { __asm__ volatile(\"\"); return 0; }
int version1(void) { return 1; }
int version2(void) { return 2; }
__attribute__((noinline)) int slow(void) { for (int i = 0; i < 20000; i++) sink = i; return 0; }
int slow1(void) { for (int i = 0; i < 20000; i++) sink = i; return 1; }
int slow2(void) { for (int i = 0; i < 20000; i++) sink = i; return 2; }
/* Counts results that are none of the three. */
int calls(int count) { int bad = 0; for (int i = 0; i < count; i++) bad += (unsigned)version() > 2; return bad; }
int slows(int count) { int bad = 0; for (int i = 0; i < count; i++) bad += (unsigned)slow() > 2; return bad; }
";

pub(crate) fn every_result_is_allowed_and_every_transition_ends() {
    const BURST: i32 = 10_000;
    static STOP: AtomicBool = AtomicBool::new(false);
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let host = host();
    let versions = host.load(&built("versions", VERSIONS)).unwrap();
    let run = |function: &'static str, count: i32| {
        let versions = versions.clone();
        thread::spawn(move || {
            while !STOP.load(Ordering::Relaxed) {
                assert_eq!(call(&versions, function, count), 0, "{function}");
                CALLS.fetch_add(usize::try_from(count).unwrap(), Ordering::Relaxed);
            }
        })
    };
    let threads = [run("calls", BURST), run("calls", BURST), run("calls", BURST), run("slows", 10)];
    let both = |number: usize| {
        let funcs = [("version", number), ("slow", number)];
        funcs.map(|(old, number)| func(old, &versions, &format!("{old}{number}"))).to_vec()
    };
    let mut chance = Chance::new(7);
    let (mut turned, mut done) = (0, 0);
    let begun = Instant::now();
    while done < 1000 || turned <= 10 || CALLS.load(Ordering::Relaxed) < 10_000_000 {
        host.enable_patch("first", patch("versions", both(1)), None).unwrap();
        if chance.below(3) == 0 && host.reverse_patch("first").is_ok() {
            turned += 1;
            settled(&host);
            done += 1;
            if host.patches().unwrap().is_empty() {
                continue;
            }
        }
        settled(&host);
        host.enable_patch("second", PatchSpec { replace: true, ..patch("versions", both(2)) }, None).unwrap();
        settled(&host);
        let names: Vec<_> = host.patches().unwrap().into_iter().map(|patch| patch.name).collect();
        assert_eq!(names, ["second"]);
        assert_eq!(call(&versions, "calls", 1), 0);
        host.disable_patch("second").unwrap();
        if chance.below(3) == 0 && host.reverse_patch("second").is_ok() {
            turned += 1;
            settled(&host);
            if !host.patches().unwrap().is_empty() {
                host.disable_patch("second").unwrap();
            }
        }
        settled(&host);
        assert!(host.patches().unwrap().is_empty());
        done += 3;
    }
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{done} transitions, {turned} of them turned round, {CALLS:?} calls, {:?}", begun.elapsed());
    assert!(turned > 10, "some were open long enough to be turned round");
}

pub(crate) fn cycles_leave_nothing() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let both = || vec![func("one", &new, "new_one"), func("two", &new, "new_two")];
    let cycle = |count: usize| {
        for _ in 0..count {
            host.enable_patch("first", patch("target", both()), Some(&new)).unwrap();
            host.disable_patch("first").unwrap();
        }
        let used = modload::text::Arena::get().unwrap().usage().map(|stripe| stripe.used);
        // The kernel maps and drops pages of files at any time.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB")).unwrap();
        let own: u64 = own.trim().parse().unwrap();
        (used, modload_tests::mappings().len(), modload_tests::descriptors(), own)
    };
    let (used, mappings, descriptors, own) = cycle(1000);
    let begun = Instant::now();
    let after = cycle(100_000);
    println!("{:?} for 100,000 cycles; {own} KiB before, {} after", begun.elapsed(), after.3);
    assert_eq!((after.0, after.1, after.2), (used, mappings, descriptors));
    assert!(after.3 < own + 256, "{own} KiB before, {} after", after.3);
    assert_eq!(call(&target, "both", 1), 2003);
}

pub(crate) fn between_two_checkpoints_nothing_changes() {
    static STOP: AtomicBool = AtomicBool::new(false);
    static OLD: AtomicUsize = AtomicUsize::new(0);
    static ALL: AtomicUsize = AtomicUsize::new(0);
    let host = checkpoints::host();
    let pair = host.load(&built("pair", PAIR)).unwrap();
    // A request sees the same versions from its beginning to its end, and the old or the new versions of both
    // functions.
    fn request(pair: &Module, chance: &mut Chance) {
        let seen = call(pair, "look", 0);
        assert!(seen == 0 || seen == 3, "{seen}");
        for _ in 0..chance.below(200) {
            assert_eq!(call(pair, "look", 0), seen);
        }
        ALL.fetch_add(1, Ordering::Relaxed);
        OLD.fetch_add(usize::from(seen == 0), Ordering::Relaxed);
    }
    let serve = |seed: u64| {
        let (host, pair) = (host.clone(), pair.clone());
        move || {
            let mut chance = Chance::new(seed);
            while !STOP.load(Ordering::Relaxed) {
                request(&pair, &mut chance);
                host.checkpoint();
            }
        }
    };
    let mut threads: Vec<_> = (1..4).map(|seed| thread::spawn(serve(seed))).collect();
    // And a thread that starts other threads all the time; each of them ends soon.
    let (host_of_born, pair_of_born) = (host.clone(), pair.clone());
    threads.push(thread::spawn(move || {
        for seed in 10.. {
            if STOP.load(Ordering::Relaxed) {
                return;
            }
            let pair = pair_of_born.clone();
            thread::spawn(move || request(&pair, &mut Chance::new(seed))).join().unwrap();
            host_of_born.checkpoint();
        }
    }));
    let mut chance = Chance::new(7);
    let (mut done, mut turned) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) || done <= 50 || turned <= 20 || OLD.load(Ordering::Relaxed) == 0 {
        let funcs = vec![func("first", &pair, "new_first"), func("second", &pair, "new_second")];
        host.enable_patch("first", patch("pair", funcs), None).unwrap();
        while chance.below(3) == 0 && host.reverse_patch("first").is_ok() {
            turned += 1;
        }
        checkpoints::settled(&host);
        if host.patches().unwrap().is_empty() {
            continue;
        }
        assert_eq!(call(&pair, "look", 0), 3);
        host.disable_patch("first").unwrap();
        while chance.below(3) == 0 && host.reverse_patch("first").is_ok() {
            turned += 1;
        }
        checkpoints::settled(&host);
        if !host.patches().unwrap().is_empty() {
            host.disable_patch("first").unwrap();
            checkpoints::settled(&host);
        }
        assert_eq!(call(&pair, "look", 0), 0);
        done += 1;
    }
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{done} times there and back, {turned} turns, {ALL:?} requests, {OLD:?} of them by the old functions");
    let (all, old) = (ALL.load(Ordering::Relaxed), OLD.load(Ordering::Relaxed));
    assert!(done > 50 && turned > 20 && old > 0 && old < all, "{done} {turned} {old} {all}");
}

pub(crate) fn cycles_at_checkpoints_leave_nothing() {
    let host = checkpoints::host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let other = Other::new();
    let both = || vec![func("one", &new, "new_one"), func("two", &new, "new_two")];
    let cycle = |count: usize| {
        for _ in 0..count {
            host.enable_patch("first", patch("target", both()), Some(&new)).unwrap();
            assert!(other.comes_to_a_checkpoint(&host));
            checkpoints::settled(&host);
            host.disable_patch("first").unwrap();
            assert!(other.comes_to_a_checkpoint(&host));
            checkpoints::settled(&host);
        }
        let used = modload::text::Arena::get().unwrap().usage().map(|stripe| stripe.used);
        (used, modload_tests::mappings().len(), modload_tests::descriptors())
    };
    let before = cycle(100);
    let begun = Instant::now();
    let after = cycle(2000);
    println!("{:?} for 2,000 cycles; {} mappings before, {} after", begun.elapsed(), before.1, after.1);
    assert_eq!((after.0, after.2), (before.0, before.2));
    // The worker thread starts and ends, with a stack and one of the C library's arenas (eight a processor), two mappings each.
    assert!(after.1 <= before.1 + 40, "{} mappings before, {} after", before.1, after.1);
    assert_eq!((call(&target, "both", 1), other.calls(&target, "both")), (2003, 2003));
    other.ends();
}
