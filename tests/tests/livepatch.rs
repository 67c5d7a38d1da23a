//! Live patching, end to end: which code runs for whom, before, during and after a transition.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use modload::{
    Call, Callbacks, EventKind, Filter, FuncSpec, Host, HostFunction, Image, Mode, Module, ObjectSpec, PatchSpec,
    State, TraceOptions,
};
use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use modload_tests::{Case, Chance};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("a_function_is_replaced_and_put_back", replaced),
        Case::new("a_patch_waits_for_its_target", waits),
        Case::new("patches_stack_up_and_are_replaced_at_once", stacked),
        Case::new("a_thread_that_is_in_old_code_stays_there", blocked),
        Case::new("a_transition_is_turned_round", reversed),
        Case::new("a_transition_is_forced", forced),
        Case::new("nobody_sees_new_then_old", witness).within_seconds(120),
        Case::new("every_result_is_allowed_and_every_transition_ends", under_load).within_seconds(240),
        Case::new("cycles_leave_nothing", cycles).within_seconds(240),
        Case::new("functions_of_the_hosts_own_are_patched", hosts_own),
        Case::new("a_patched_function_can_be_traced", traced),
        Case::new("threads_are_born_and_end_in_mid_transition", born),
        Case::new("a_tail_call_leaves_its_function", tail_call),
        Case::new("what_is_thrown_passes_through_a_patched_function", thrown).needing("g++"),
        Case::new("a_host_that_goes_takes_its_patches_along", dropped),
        Case::new("what_cannot_be_patched_is_refused_by_name", refused),
        Case::new("seed_003_ftrace_klp_klp_ftrace_in_both_load_orders", seed_003),
    ])
}

fn built(name: &str, text: &str) -> Image<'static> {
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5", "-fvisibility=hidden"];
    let object = object_from_text(name, Language::C, text, Compiler::Cc, &flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

const TARGET: &str = "
static volatile int go;
void release(void) { go = 1; }
void again(void) { go = 0; }
__attribute__((noinline)) int one(int a) { __asm__ volatile(\"\"); return a + 1; }
__attribute__((noinline)) int two(int a) { __asm__ volatile(\"\"); return a + 2; }
__attribute__((noinline)) int waits(int a) { while (!go) __builtin_ia32_pause(); int b = one(a); __asm__ volatile(\"\"); return b; }
int both(int a) { return one(a) * 1000 + two(a); }
";

const NEW: &str = "
int new_one(int a) { return a + 101; }
int new_two(int a) { return a + 102; }
int newer_one(int a) { return a + 201; }
int new_waits(int a) { return a + 500; }
";

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

fn call(module: &Module, function: &str, argument: i32) -> i32 {
    // SAFETY: every function of these texts that is called here is an `int f(int)`.
    let function = unsafe { module.symbol::<extern "C" fn(i32) -> i32>(function) }.unwrap();
    function(argument)
}

fn func(old: &str, new: &Module, function: &str) -> FuncSpec {
    let new_func = new.symbol_info(function).unwrap().addr;
    FuncSpec { old_name: old.to_owned(), old_sympos: 0, new_func }
}

fn patch(object: &str, funcs: Vec<FuncSpec>) -> PatchSpec {
    let object = ObjectSpec { name: Some(object.to_owned()), funcs, callbacks: Callbacks::default() };
    PatchSpec { objects: vec![object], ..PatchSpec::default() }
}

/// Waits until no patch is in transition.
fn settled(host: &Host) {
    let begun = Instant::now();
    while host.patches().unwrap().iter().any(|patch| patch.transition.is_some()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:#?}", host.patches());
        thread::sleep(Duration::from_millis(1));
    }
}

fn replaced() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    assert_eq!(call(&target, "one", 1), 2);
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), Some(&new)).unwrap();
    settled(&host);
    assert_eq!((call(&target, "one", 1), call(&target, "both", 1)), (102, 102_003));
    assert!(new.unload().is_err(), "a patch keeps its module");
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!((call(&target, "one", 1), call(&target, "both", 1)), (2, 2003));
    host.unload("new").unwrap();
    target.unload().unwrap();
    assert!(matches!(host.disable_patch("first"), Err(modload::PatchError::Unknown(_))));
}

fn waits() {
    let host = host();
    let new = host.load(&built("new", NEW)).unwrap();
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), Some(&new)).unwrap();
    for _ in 0..3 {
        let target = host.load(&built("target", TARGET)).unwrap();
        assert_eq!(call(&target, "both", 1), 102_003);
        target.unload().unwrap();
    }
    host.disable_patch("first").unwrap();
    let target = host.load(&built("target", TARGET)).unwrap();
    assert_eq!(call(&target, "both", 1), 2003);
}

fn stacked() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one"), func("two", &new, "new_two")]), None)
        .unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 102_103);
    host.enable_patch("second", patch("target", vec![func("one", &new, "newer_one")]), None).unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 202_103);
    let third = PatchSpec { replace: true, ..patch("target", vec![func("two", &new, "new_two")]) };
    host.enable_patch("third", third, None).unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 2103);
    let names: Vec<_> = host.patches().unwrap().into_iter().map(|patch| patch.name).collect();
    assert_eq!(names, ["third"]);
    host.disable_patch("third").unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 2003);
}

/// A thread that is in `waits` until it is released.
fn waiting(target: &Module) -> thread::JoinHandle<i32> {
    let target = target.clone();
    let there = Arc::new(Barrier::new(2));
    let arrived = there.clone();
    let thread = thread::spawn(move || {
        arrived.wait();
        call(&target, "waits", 1)
    });
    there.wait();
    thread::sleep(Duration::from_millis(20));
    thread
}

fn blocked() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let thread = waiting(&target);
    let funcs = vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    host.enable_patch("first", patch("target", funcs), None).unwrap();
    let status = host.patches().unwrap();
    let (_, blocked) = status[0].transition.clone().expect("a thread is in the way");
    assert_eq!(blocked.len(), 1);
    // Others are over, and new threads begin there.
    assert_eq!((call(&target, "one", 1), call(&target, "waits", 1)), (102, 501));
    let other = target.clone();
    assert_eq!(thread::spawn(move || call(&other, "one", 1)).join().unwrap(), 102);
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 2, "it calls the old one from the old one");
    settled(&host);
    assert_eq!(call(&target, "waits", 1), 501);
}

fn reversed() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let thread = waiting(&target);
    let funcs = vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    host.enable_patch("first", patch("target", funcs), None).unwrap();
    assert_eq!(call(&target, "one", 1), 102);
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!(call(&target, "one", 1), 2);
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 2);
    assert!(host.patches().unwrap().is_empty());
}

fn forced() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let thread = waiting(&target);
    let funcs = vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    host.enable_patch("first", patch("target", funcs), None).unwrap();
    host.force_patch("first").unwrap();
    let status = host.patches().unwrap();
    assert!(status[0].forced && status[0].transition.is_none());
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 102, "forced, it calls the new one from the old one");
}

/// Two functions that change together, and one that calls both, first the one and then the other.
const PAIR: &str = "
__attribute__((noinline)) int first(void) { __asm__ volatile(\"\"); return 0; }
__attribute__((noinline)) int second(void) { __asm__ volatile(\"\"); return 0; }
int new_first(void) { return 1; }
int new_second(void) { return 1; }
__attribute__((noinline)) int look(int unused) { int a = first(), b = second(); return a * 2 + b; }
";

fn witness() {
    /// Even: nothing is under way. 1 of 4: it is being patched; 3 of 4: it is being unpatched.
    static PHASE: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    /// What was seen within one phase, by the phase.
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
    while begun.elapsed() < Duration::from_secs(10) {
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
    // Nothing is under way: everybody sees the same twice.
    for (phase, same) in [(0, 0), (2, 3)] {
        assert!((0..4).all(|what| what == same || seen(phase, what) == 0));
        assert!(seen(phase, same) > 0);
    }
    // Whoever has gone over does not come back.
    assert_eq!((seen(1, 2), seen(3, 1)), (0, 0));
    assert!(cycles > 10);
}

/// Functions that tell their versions, one of which takes long.
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

fn under_load() {
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
    while done < 1000 || CALLS.load(Ordering::Relaxed) < 10_000_000 {
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

fn cycles() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let both = || vec![func("one", &new, "new_one"), func("two", &new, "new_two")];
    let cycle = |count: usize| {
        for _ in 0..count {
            host.enable_patch("first", patch("target", both()), Some(&new)).unwrap();
            host.disable_patch("first").unwrap();
        }
        let used = modload::Arena::get().unwrap().usage().map(|stripe| stripe.used);
        let size = std::fs::read_to_string("/proc/self/statm").unwrap();
        let resident: u64 = size.split(' ').nth(1).unwrap().parse().unwrap();
        (used, modload_tests::mappings().len(), modload_tests::descriptors(), resident)
    };
    let (used, mappings, descriptors, resident) = cycle(1000);
    let begun = Instant::now();
    let after = cycle(100_000);
    println!("{:?} for 100,000 cycles; {resident} pages before, {} after", begun.elapsed(), after.3);
    assert_eq!((after.0, after.1, after.2), (used, mappings, descriptors));
    assert!(after.3 < resident + 64, "{resident} pages before, {} after", after.3);
    assert_eq!(call(&target, "both", 1), 2003);
}

#[link(name = "entries", kind = "static")]
unsafe extern "C" {
    static patchable_functions: [extern "C" fn(i32) -> i32; 8];
}

fn hosts_own() {
    let host = host();
    // SAFETY: written once, when the program is linked.
    let functions = unsafe { patchable_functions };
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let registered = (1..).zip(functions).map(|(number, function)| {
        // SAFETY: compiled with five NOPs at its entry, and there for as long as the process.
        unsafe { HostFunction::new(format!("add_{number}"), function as *const ()) }
    });
    host.register_host_functions(registered.collect()).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    assert_eq!(functions.map(|function| function(10)), [11, 12, 13, 14, 15, 16, 17, 18]);
    let object = ObjectSpec { funcs: vec![func("add_3", &new, "new_one")], ..ObjectSpec::default() };
    host.enable_patch("first", PatchSpec { objects: vec![object], ..PatchSpec::default() }, Some(&new)).unwrap();
    settled(&host);
    assert_eq!(functions.map(|function| function(10)), [11, 12, 111, 14, 15, 16, 17, 18]);
    assert_eq!(host.patches().unwrap()[0].objects[0].name, "vmlinux");
    // By way of its tracer.
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let tracing = host.trace("vmlinux:add_*".parse().unwrap(), |_: &Call<'_>| {
        CALLS.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(functions.map(|function| function(10)), [11, 12, 111, 14, 15, 16, 17, 18]);
    assert_eq!(CALLS.load(Ordering::Relaxed), 8);
    drop(tracing);
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!(functions.map(|function| function(10)), [11, 12, 13, 14, 15, 16, 17, 18]);
}

fn traced() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let tracer = || {
        let count = count.clone();
        move |_: &Call<'_>| {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let calls = |expected: i32, counted: usize| {
        assert_eq!(call(&target, "one", 1), expected);
        assert_eq!(count.swap(0, Ordering::Relaxed), counted);
    };
    let filter = || "target:one".parse::<Filter>().unwrap();
    let enable = || host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), None).unwrap();
    // Traced first, patched first, and both taken back in both orders.
    let tracing = host.trace(filter(), tracer()).unwrap();
    calls(2, 1);
    enable();
    calls(102, 1);
    drop(tracing);
    calls(102, 0);
    let tracing = host.trace_with_registers(filter(), tracer()).unwrap();
    calls(102, 1);
    host.disable_patch("first").unwrap();
    calls(2, 1);
    enable();
    for mode in [Mode::Calls, Mode::Graph] {
        let trace = host.trace_functions(&TraceOptions::new(mode).pattern("target:one").unwrap()).unwrap();
        calls(102, 1);
        let records = trace.finish().records.len();
        assert_eq!(records, if mode == Mode::Calls { 1 } else { 2 });
    }
    drop(tracing);
    calls(102, 0);
    // In transition.
    host.disable_patch("first").unwrap();
    let thread = waiting(&target);
    let tracing = host.trace(filter(), tracer()).unwrap();
    let funcs = vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    host.enable_patch("second", patch("target", funcs), None).unwrap();
    assert!(host.patches().unwrap()[0].transition.is_some());
    calls(102, 1);
    call(&target, "release", 0);
    assert_eq!(thread.join().unwrap(), 2);
    assert_eq!(count.swap(0, Ordering::Relaxed), 1, "the call from old code");
    settled(&host);
    calls(102, 1);
    drop(tracing);
    // Somebody who redirects it cannot beside a patch.
    struct Nowhere;
    impl modload::Redirect for Nowhere {
        fn redirect(&self, _: &Call<'_>) -> Option<modload::Addr> {
            None
        }
    }
    host.disable_patch("second").unwrap();
    settled(&host);
    // SAFETY: it redirects nothing.
    let redirecting = host.redirect(filter(), unsafe { modload::Redirecting::new(Nowhere) }).unwrap();
    let refused = host.enable_patch("third", patch("target", vec![func("one", &new, "new_one")]), None).unwrap_err();
    assert!(format!("{refused:?}").contains("Redirected"), "{refused:?}");
    drop(redirecting);
    calls(2, 0);
}

fn born() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let funcs = || vec![func("one", &new, "new_one"), func("waits", &new, "new_waits")];
    for round in 0..20 {
        call(&target, "again", 0);
        let threads: Vec<_> = (0..4).map(|_| waiting(&target)).collect();
        host.enable_patch("first", patch("target", funcs()), None).unwrap();
        assert!(host.patches().unwrap()[0].transition.is_some());
        for _ in 0..50 {
            let target = target.clone();
            assert_eq!(thread::spawn(move || call(&target, "one", 1)).join().unwrap(), 102);
        }
        call(&target, "release", 0);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 2, "round {round}");
        }
        // Nobody who was in the way is there any more.
        settled(&host);
        host.disable_patch("first").unwrap();
        settled(&host);
        assert_eq!(call(&target, "one", 1), 2);
    }
}

fn tail_call() {
    const TAILS: &str = "
    static volatile int go;
    void release(void) { go = 1; }
    __attribute__((noinline)) int end(int a) { while (!go) __builtin_ia32_pause(); __asm__ volatile(\"\"); return a; }
    __attribute__((noinline)) int tail(int a) { __asm__ volatile(\"\"); return end(a + 1); }
    int new_tail(int a) { return a + 100; }
    ";
    let host = host();
    let tails = host.load(&built("tails", TAILS)).unwrap();
    let there = tails.clone();
    let thread = thread::spawn(move || call(&there, "tail", 1));
    thread::sleep(Duration::from_millis(50));
    // It is in `end` by a jump from `tail`: that is on no stack.
    host.enable_patch("first", patch("tails", vec![func("tail", &tails, "new_tail")]), None).unwrap();
    assert!(host.patches().unwrap()[0].transition.is_none());
    assert_eq!(call(&tails, "tail", 1), 101);
    call(&tails, "release", 0);
    assert_eq!(thread.join().unwrap(), 2);
}

fn thrown() {
    const THROWING: &str = "
    extern \"C\" {
    __attribute__((noinline)) int throws(int a) { if (a == 1) throw 1; return a; }
    int throws_more(int a) { if (a <= 2) throw 2; return a + 100; }
    int catches(int a) { try { return throws(a); } catch (int thrown) { return -thrown; } }
    }
    ";
    // SAFETY: the C++ runtime, whose initialisers ask for nothing.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null());
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5"];
    let object = object_from_text("throwing", Language::Cxx, THROWING, Compiler::Cc, &flags).unwrap();
    let host = host();
    // SAFETY: the text is ours.
    let throwing = host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("throwing")).unwrap();
    let results = || [1, 2, 3].map(|a| call(&throwing, "catches", a));
    assert_eq!(results(), [-1, 2, 3]);
    host.enable_patch("first", patch("throwing", vec![func("throws", &throwing, "throws_more")]), None).unwrap();
    settled(&host);
    assert_eq!(results(), [-2, -2, 103]);
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!(results(), [-1, 2, 3]);
}

fn dropped() {
    let host = host();
    let used = || modload::Arena::get().unwrap().usage().map(|stripe| stripe.used);
    let before = used();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let other = built("target", TARGET);
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), Some(&new)).unwrap();
    // Another host has a module of that name, and nothing to do with it.
    let second = Host::builder().process_symbols().build().unwrap();
    let same = second.load(&other).unwrap();
    assert_eq!((call(&target, "one", 1), call(&same, "one", 1)), (102, 2));
    assert!(second.patches().unwrap().is_empty());
    drop((target, new));
    drop(host);
    assert_eq!(call(&same, "one", 1), 2);
    drop(same);
    drop(second);
    // Stubs stay; of modules nothing does.
    assert!(used()[0] - before[0] <= 64 * 64, "{:?} {:?}", before, used());
    assert_eq!(used()[1..], before[1..]);
}

fn refused() {
    const TWICE: &str = "
    static __attribute__((noinline)) int same(int a) { __asm__ volatile(\"\"); return a + 1; }
    int first_same(int a) { return same(a); }
    __attribute__((noinline, patchable_function_entry(0))) int plain(int a) { __asm__ volatile(\"\"); return a; }
    int data = 7;
    ";
    let host = host();
    let twice = host.load(&built("twice", TWICE)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let why = |name: &str, spec: PatchSpec| {
        let mut error: &dyn std::error::Error = &host.enable_patch(name, spec, None).unwrap_err();
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            text = format!("{text}: {source}");
            error = source;
        }
        text
    };
    let of = |old: &str, position: u64| {
        patch("twice", vec![FuncSpec { old_sympos: position, ..func(old, &new, "new_one") }])
    };
    assert_eq!(why("p", of("nothing", 0)), "symbol 'nothing' not found in object 'twice'");
    assert_eq!(why("p", of("data", 0)), "symbol 'data' not found in object 'twice'");
    let position = why("p", of("same", 2));
    assert_eq!(position, "symbol 'same' is there 1 times in object 'twice': position 2 is none of them");
    assert!(why("p", of("plain", 0)).starts_with("function 'plain' of object 'twice' cannot be patched: "));
    assert_eq!(why("p", PatchSpec::default()), "the patch has no objects");
    host.enable_patch("p", of("same", 1), None).unwrap();
    assert_eq!(call(&twice, "first_same", 1), 102);
    assert_eq!(why("p", of("same", 1)), "patch 'p' is enabled already");
    let disabled = host.disable_patch("q").unwrap_err();
    assert_eq!(disabled.to_string(), "there is no patch 'q'");
    assert!(matches!(host.reverse_patch("p"), Err(modload::PatchError::NoTransition)));
    assert!(matches!(host.force_patch("p"), Err(modload::PatchError::NoTransition)));
    // A target whose patch does not fit it is refused, and says why.
    host.enable_patch("late", patch("later", vec![func("missing", &new, "new_one")]), None).unwrap();
    let refused = host.load(&built("later", "int there(int a) { return a; }")).unwrap_err().to_string();
    assert!(refused.contains("patch 'late' failed for module 'later'") && refused.contains("'missing'"), "{refused}");
    // Who refuses in a callback is named, too.
    let callbacks = Callbacks { pre_patch: Some(Arc::new(|| Err(-19))), ..Callbacks::default() };
    let funcs = vec![func("first_same", &new, "new_one")];
    let object = ObjectSpec { name: Some("twice".into()), funcs, callbacks };
    let text = why("c", PatchSpec { objects: vec![object], ..PatchSpec::default() });
    assert_eq!(text, "pre-patch callback failed for object 'twice': it returned -19");
    assert_eq!(call(&twice, "first_same", 1), 102);
}

/// What happens to `greet` and its patch, whichever comes first: of the timeline, what ftrace and live patching are told and say,
/// and when code of a module runs.
fn story(order: [&str; 2]) -> String {
    let host = host();
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5", "-fvisibility=hidden"];
    let recording = host.record();
    let load = |name: &str| {
        let object = Fixture::new(name).object(Compiler::Cc, &flags).unwrap();
        // SAFETY: fixtures of ours.
        host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)).unwrap()
    };
    let [first, second] = order.map(load);
    let greet = if order[0] == "greet" { &first } else { &second };
    assert_eq!(call(greet, "greet_count", 0), 42);
    drop((first, second));
    host.unload("greet").unwrap();
    host.disable_patch("greet_fix").unwrap();
    settled(&host);
    host.unload("greet_fix").unwrap();
    let timeline = recording.finish();
    let told = timeline.events.iter().filter(|event| match &event.kind {
        EventKind::Notify { state, subscriber, .. } => *state != State::Live && &**subscriber != "static_keys",
        EventKind::State { .. } | EventKind::Log { .. } | EventKind::Init { .. } | EventKind::Publish => true,
        _ => false,
    });
    told.map(|event| format!("{event}\n")).collect()
}

fn seed_003() {
    let stories = [["greet_fix", "greet"], ["greet", "greet_fix"]].map(|order| {
        let story = story(order);
        // ftrace, klp | klp, ftrace.
        let places = [
            "greet        notify    coming COMING -> ftrace",
            "greet        notify    coming COMING -> livepatch",
            "greet        publish",
            "greet        init",
            "greet        notify    going GOING -> livepatch",
            "greet        notify    going GOING -> ftrace",
        ];
        let places = places.map(|line| story.find(line).unwrap_or_else(|| panic!("{line}\n{story}")));
        assert!(places.is_sorted(), "{story}");
        format!("# {} first\n{story}", order[0])
    });
    insta::assert_snapshot!("seed_003", stories.join("\n"));
}
