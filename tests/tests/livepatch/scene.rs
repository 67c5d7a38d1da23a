//! A target, the replacements of its functions, and calls of them.

use std::thread;

use modload::patch::{Callbacks, FuncSpec, ObjectSpec, PatchSpec};
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Patience, until};

pub(crate) fn built(name: &str, text: &str) -> Image<'static> {
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5", "-fvisibility=hidden"];
    let object = object_from_text(name, Language::C, text, Compiler::Cc, &flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

pub(crate) const TARGET: &str = "
static volatile int go, inside;
void release(void) { go = 1; }
int arrived(int a) { return a + inside; }
void again(void) { go = 0; }
__attribute__((noinline)) int one(int a) { __asm__ volatile(\"\"); return a + 1; }
__attribute__((noinline)) int two(int a) { __asm__ volatile(\"\"); return a + 2; }
__attribute__((noinline)) int waits(int a) { __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST); while (!go) __builtin_ia32_pause(); int b = one(a); __asm__ volatile(\"\"); return b; }
int both(int a) { return one(a) * 1000 + two(a); }
";

pub(crate) const NEW: &str = "
int new_one(int a) { return a + 101; }
int new_two(int a) { return a + 102; }
int newer_one(int a) { return a + 201; }
int new_waits(int a) { return a + 500; }
";

pub(crate) fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

pub(crate) fn call(module: &Module, function: &str, argument: i32) -> i32 {
    // SAFETY: every function of these texts that is called here is an `int f(int)`.
    let function = unsafe { module.symbol::<extern "C" fn(i32) -> i32>(function) }.unwrap();
    function(argument)
}

pub(crate) fn func(old: &str, new: &Module, function: &str) -> FuncSpec {
    let new_func = new.symbol_info(function).unwrap().addr;
    FuncSpec { old_name: old.to_owned(), old_sympos: 0, new_func }
}

pub(crate) fn patch(object: &str, funcs: Vec<FuncSpec>) -> PatchSpec {
    let object = ObjectSpec { name: Some(object.to_owned()), funcs, callbacks: Callbacks::default() };
    PatchSpec { objects: vec![object], ..PatchSpec::default() }
}

/// Waits until no patch is in transition.
pub(crate) fn settled(host: &Host) {
    settled_after(host);
}

/// The same. Returns the number of turns of waiting.
pub(crate) fn settled_after(host: &Host) -> u32 {
    let mut patience = Patience::new();
    while host.patches().unwrap().iter().any(|patch| patch.transition.is_some()) {
        patience.turn(|| format!("{:#?}", host.patches()));
    }
    patience.turns()
}

/// Starts a thread that is in `waits` until the thread is released.
pub(crate) fn waiting(target: &Module) -> thread::JoinHandle<i32> {
    let before = call(target, "arrived", 0);
    let there = target.clone();
    let thread = thread::spawn(move || call(&there, "waits", 1));
    until("it is in `waits`", || call(target, "arrived", 0) != before);
    thread
}
