//! Live patching, end to end: which code runs for whom, before, during and after a transition.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use modload::{Addr, Callbacks, FuncSpec, Host, Image, Module, ObjectSpec, PatchSpec};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::Case;

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("a_function_is_replaced_and_put_back", replaced),
        Case::new("a_patch_waits_for_its_target", waits),
        Case::new("patches_stack_up_and_are_replaced_at_once", stacked),
        Case::new("a_thread_that_is_in_old_code_stays_there", blocked),
        Case::new("a_transition_is_turned_round", reversed),
        Case::new("a_transition_is_forced", forced),
        Case::new("nobody_sees_new_then_old", witness).within_seconds(120),
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

fn witness() {
    const PAIR: &str = "
    __attribute__((noinline)) int first(void) { __asm__ volatile(\"\"); return 0; }
    __attribute__((noinline)) int second(void) { __asm__ volatile(\"\"); return 0; }
    int new_first(void) { return 1; }
    int new_second(void) { return 1; }
    __attribute__((noinline)) int look(int unused) { int a = first(), b = second(); return a * 2 + b; }
    ";
    let host = host();
    let pair = host.load(&built("pair", PAIR)).unwrap();
    static STOP: AtomicBool = AtomicBool::new(false);
    static SEEN: [AtomicI32; 4] = [const { AtomicI32::new(0) }; 4];
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let pair = pair.clone();
            thread::spawn(move || {
                while !STOP.load(Ordering::Relaxed) {
                    let seen = call(&pair, "look", 0);
                    SEEN[usize::try_from(seen).unwrap()].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // Whoever looks is in `look` while one of the two is called: it changes, too, so that nobody is half way through it.
    let look: Addr = pair.symbol_info("look").unwrap().addr;
    let funcs = vec![
        func("first", &pair, "new_first"),
        func("second", &pair, "new_second"),
        FuncSpec { old_name: "look".into(), old_sympos: 0, new_func: look },
    ];
    let _unused = funcs;
    let begun = Instant::now();
    let mut cycles = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        let funcs = vec![func("first", &pair, "new_first"), func("second", &pair, "new_second")];
        host.enable_patch("first", patch("pair", funcs), None).unwrap();
        settled(&host);
        host.disable_patch("first").unwrap();
        settled(&host);
        cycles += 1;
    }
    STOP.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{cycles} cycles, {SEEN:?}");
}
