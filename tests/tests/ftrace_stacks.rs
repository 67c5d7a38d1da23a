//! Exceptions, and stacks within stacks, under graph tracing: the results are the same as without tracing, and records
//! are nested.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use modload::trace::{Batch, Missed, ThreadAction};
use modload::trace::{Mode, TraceOptions};
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Case, case};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("a_hundred_thousand_exceptions_with_sibling_calls", || throws("-foptimize-sibling-calls"))
            .needing("g++")
            .within_seconds(600),
        Case::new("a_hundred_thousand_exceptions_without_sibling_calls", || throws("-fno-optimize-sibling-calls"))
            .needing("g++")
            .within_seconds(600),
        case!(exceptions_on_a_coroutine_within_the_threads_stack).needing("g++"),
        Case::new("a_coroutine_within_the_threads_stack", || inner("check_one", Recorded::Outside)),
        Case::new("a_coroutine_within_another_threads_stack", || inner("check_thread", Recorded::Outside)),
        Case::new("two_coroutines_within_the_threads_stack", || inner("check_two", Recorded::Outside)),
        Case::new("coroutines_that_are_switched_to_below_nothing_that_is_recorded", || {
            inner("check_plainly", Recorded::Some);
        }),
        Case::new("coroutines_that_are_left_in_the_middle", || inner("check_left", Recorded::Outside)),
        Case::new("jumps_on_a_coroutine_and_beside_it", || inner("check_jumps", Recorded::Outside)),
        Case::new("coroutines_that_are_switched_by_code_without_rows", || inner("check_by_hand", Recorded::Outside)),
    ])
}

fn built(language: Language, text: &str, more: &[&str]) -> (Host, Module) {
    let flags = [&["-O2", "-fPIC", "-fpatchable-function-entry=5", "-pthread", "-w"], more].concat();
    let object = object_from_text("stacks", language, text, Compiler::Cc, &flags).unwrap();
    // SAFETY: the texts are ours.
    let image = unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("stacks");
    let host = Host::builder().process_symbols().build().unwrap();
    let module = host.load(&image).unwrap();
    (host, module)
}

fn call(module: &Module, name: &str, arguments: &[u64]) -> u64 {
    // SAFETY: the called functions take and return a `long`.
    unsafe { module.call(name, arguments) }.unwrap()
}

/// The contents of the graph of a run.
#[derive(Default)]
struct Told {
    entered: u64,
    unwound: u64,
    /// For each thread, the functions that the thread has entered and not left.
    open: Vec<Vec<u32>>,
    missed: Missed,
}

impl Told {
    fn add(&mut self, batch: &Batch) {
        self.open.resize_with(self.open.len() + batch.threads.len(), Vec::new);
        for record in &batch.records {
            let open = &mut self.open[usize::try_from(record.thread).unwrap()];
            match record.what {
                ThreadAction::Enter => {
                    self.entered += 1;
                    open.push(record.function);
                }
                ThreadAction::Call { .. } => panic!("a graph has no calls"),
                ThreadAction::Leave | ThreadAction::Unwound => {
                    self.unwound += u64::from(record.what == ThreadAction::Unwound);
                    assert_eq!(open.pop(), Some(record.function), "what ends was entered last");
                }
            }
        }
        self.missed = batch.missed;
    }
}

/// Calls `run` while all functions are recorded and another thread reads.
fn graph(host: &Host, run: impl FnOnce() + Send) -> Told {
    let options = TraceOptions::new(Mode::Graph).pattern("stacks:*").unwrap().buffer(64 << 20);
    let mut trace = host.trace_functions(&options).unwrap();
    let mut told = Told::default();
    thread::scope(|scope| {
        let run = scope.spawn(run);
        while !run.is_finished() {
            told.add(&trace.drain());
            thread::sleep(Duration::from_millis(2));
        }
    });
    told.add(&trace.finish());
    told
}

/// Loads the C++ runtime.
fn runtime() {
    // SAFETY: the C++ runtime, whose constructors do no harm.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null(), "the C++ runtime is there if its compiler is");
}

fn throws(sibling_calls: &str) {
    const THROWS: u64 = 100_000;
    runtime();
    let (host, module) = built(Language::Cxx, include_str!("../traced/eh.cpp"), &["-std=gnu++14", sibling_calls]);
    let told =
        graph(&host, || assert_eq!(call(&module, "check_throws", &[THROWS]).cast_signed(), 0, "a line of eh.cpp"));
    let thrown = call(&module, "throws_made", &[]);
    assert!(thrown >= THROWS, "{thrown}");
    assert!(told.open.iter().all(Vec::is_empty), "all that was entered has ended");
    // An exception leaves at least the function that throws it.
    assert!(told.unwound >= thrown && told.entered > told.unwound, "{} of {}", told.unwound, told.entered);
    assert_eq!(
        told.missed.total(),
        told.missed.dropped,
        "a reader may be late, and nothing else is missed: {:?}",
        told.missed
    );
}

fn exceptions_on_a_coroutine_within_the_threads_stack() {
    runtime();
    for sibling_calls in ["-foptimize-sibling-calls", "-fno-optimize-sibling-calls"] {
        let (host, module) = built(Language::Cxx, include_str!("../traced/eh.cpp"), &["-std=gnu++14", sibling_calls]);
        let told = graph(&host, || assert_eq!(call(&module, "check_coroutine_throws", &[1000]).cast_signed(), 0));
        assert_eq!(call(&module, "throws_made", &[]), 7000);
        assert!(told.open.iter().all(Vec::is_empty) && told.missed.elsewhere != 0, "{:?}", told.missed);
    }
}

/// The expected records of a run with coroutines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Recorded {
    /// All calls on the thread's own stack, and none on a coroutine's.
    Outside,
    /// Each call, or the call is counted as missed: if no recorded function is below the switch, the tracer cannot
    /// detect the switch at once.
    Some,
}

fn inner(check: &str, recorded: Recorded) {
    const ROUNDS: u64 = 3000;
    let (host, module) = built(Language::C, include_str!("../traced/inner.c"), &[]);
    // First without tracing.
    assert_eq!(call(&module, check, &[ROUNDS]), 0);
    let told = graph(&host, || assert_eq!(call(&module, check, &[ROUNDS]), 0, "{check}"));
    let [made, inside] = ["calls_made", "calls_inside"].map(|count| call(&module, count, &[]));
    let Missed { elsewhere, .. } = told.missed;
    assert_eq!(told.missed.total(), elsewhere, "{check}: {:?}", told.missed);
    if check == "check_thread" {
        // Two checks, and the counts are the second one's.
        assert!(elsewhere >= inside && told.entered >= made - inside, "{check}: {elsewhere} {inside}");
    } else if recorded == Recorded::Outside {
        assert_eq!((told.entered, elsewhere), (made - inside, inside), "{check}");
    } else {
        assert_eq!(told.entered + elsewhere, made, "{check}");
    }
    assert!(told.open.iter().all(Vec::is_empty));
    // And afterwards all is as ever.
    let told = graph(&host, || assert_eq!(call(&module, "check_left", &[1]), 0));
    assert_eq!(
        (told.entered + told.missed.elsewhere, told.missed.total()),
        (call(&module, "calls_made", &[]), told.missed.elsewhere)
    );
}
