//! Function tracing, end to end: who hears of which calls, in which order, and what stands at a function's entry meanwhile.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use modload::trace::What;
use modload::{Call, Filter, Host, Image, Mode, Module, TraceOptions, disassembled};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Case, peek};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("calls_are_heard_of_in_every_way_of_compiling", every_way),
        Case::new("several_hear_of_one_function", several),
        Case::new("calls_are_recorded", recorded),
        Case::new("entries_and_returns_are_recorded", graphed),
    ])
}

/// Ways of compiling functions so that they can be traced.
const WAYS: [(&str, Compiler, &[&str]); 7] = [
    ("kernel", Compiler::Cc, &["-O2", "-pg", "-mfentry", "-mrecord-mcount", "-fno-pic"]),
    ("nops", Compiler::Cc, &["-O2", "-pg", "-mfentry", "-mrecord-mcount", "-mnop-mcount", "-fno-pic"]),
    ("pic", Compiler::Cc, &["-O2", "-pg", "-mfentry", "-mrecord-mcount", "-fPIC"]),
    ("patchable", Compiler::Cc, &["-O2", "-fPIC", "-fpatchable-function-entry=5"]),
    ("endbr", Compiler::Cc, &["-O2", "-fPIC", "-fcf-protection", "-fpatchable-function-entry=5"]),
    ("unoptimised", Compiler::Cc, &["-O0", "-fPIC", "-fpatchable-function-entry=5"]),
    ("clang", Compiler::Clang, &["-O2", "-fPIC", "-fpatchable-function-entry=5"]),
];

/// The first way.
const PATCHABLE: &[&str] = &["-O2", "-fPIC", "-fpatchable-function-entry=5"];

fn built(name: &str, compiler: Compiler, flags: &[&str], text: &str) -> Image<'static> {
    let object = object_from_text(name, Language::C, text, compiler, flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

const SUMS: &str = "
__attribute__((noinline)) int leaf(int a) { __asm__ volatile(\"\"); return a + 1; }
__attribute__((noinline)) int twice(int a) { return leaf(a) + leaf(a); }
__attribute__((noinline)) int many(int a, int b, int c, int d, int e, int f, int g, int h)
{ return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f + 1000000 * g + 10000000 * h; }
__attribute__((noinline)) double mixed(double x, int a, double y) { return x * a + y; }
int all(int a) { return twice(a) + many(1, 2, 3, 4, 5, 6, 7, 8) + (int)mixed(1.5, 4, 0.5); }
";

/// What `all` returns.
fn expected(a: i32) -> i32 {
    2 * (a + 1) + 87_654_321 + 6
}

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

fn call(module: &Module, function: &str, argument: i32) -> i32 {
    // SAFETY: every function of these texts that is called here is an `int f(int)`.
    let function = unsafe { module.symbol::<extern "C" fn(i32) -> i32>(function) }.unwrap();
    function(argument)
}

/// What stands at the beginning of a function, without addresses.
fn entry(module: &Module, function: &str) -> String {
    let at = module.symbol_info(function).unwrap().addr;
    let text = disassembled(at, &peek(at, 10));
    let first = text.split("; ").find(|line| !line.starts_with("endbr64")).unwrap_or_default();
    first.split_whitespace().next().unwrap_or_default().to_owned()
}

fn every_way() {
    for (way, compiler, flags) in WAYS {
        if compiler.find().is_none() {
            println!("SKIPPED {way}: there is no {}", compiler.name());
            continue;
        }
        let host = host();
        let module = host.load(&built("sums", compiler, flags, SUMS)).unwrap();
        let plain = entry(&module, "leaf");
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = heard.clone();
        let tracing = host.trace("sums:*".parse().unwrap(), move |call: &Call<'_>| {
            log.lock().unwrap().push(call.symbol().to_owned());
        });
        let tracing = tracing.unwrap();
        assert!(entry(&module, "leaf").starts_with("call"), "{way}: {}", entry(&module, "leaf"));
        assert_eq!(call(&module, "all", 5), expected(5), "{way}");
        assert_eq!(*heard.lock().unwrap(), ["all", "twice", "leaf", "leaf", "many", "mixed"], "{way}");
        drop(tracing);
        assert_eq!(Arc::strong_count(&heard), 1, "{way}: the tracer is gone");
        assert_eq!(entry(&module, "leaf"), plain, "{way}");
        assert_eq!(call(&module, "all", 5), expected(5), "{way}");
        assert_eq!(heard.lock().unwrap().len(), 6, "{way}");
        module.unload().unwrap();
    }
}

fn several() {
    let host = host();
    let counts: [Arc<AtomicU64>; 3] = Default::default();
    let tracer = |number: usize| {
        let count = counts[number].clone();
        move |_: &Call<'_>| {
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    let filter = |text: &str| text.parse::<Filter>().unwrap();
    // Before the module is there.
    let first = host.trace(filter("sums:leaf"), tracer(0)).unwrap();
    let second = host.trace(filter("le*"), tracer(1)).unwrap();
    let module = host.load(&built("sums", Compiler::Cc, PATCHABLE, SUMS)).unwrap();
    let third = host.trace_with_registers(filter("*"), tracer(2)).unwrap();
    let counted = || counts.each_ref().map(|count| count.swap(0, Ordering::Relaxed));
    assert_eq!(call(&module, "all", 5), expected(5));
    assert_eq!(counted(), [2, 2, 6]);
    drop(first);
    assert_eq!(call(&module, "all", 5), expected(5));
    assert_eq!(counted(), [0, 2, 6]);
    drop(third);
    assert_eq!(call(&module, "all", 5), expected(5));
    assert_eq!(counted(), [0, 2, 0]);
    drop(second);
    assert_eq!(call(&module, "all", 5), expected(5));
    assert_eq!(counted(), [0, 0, 0]);
}

fn recorded() {
    let host = host();
    let module = host.load(&built("sums", Compiler::Cc, PATCHABLE, SUMS)).unwrap();
    let mut trace = host.trace_functions(&TraceOptions::new(Mode::Calls)).unwrap();
    assert_eq!(call(&module, "all", 5), expected(5));
    let batch = trace.drain();
    let names = batch.records.iter().map(|record| {
        let What::Call { parent } = &record.what else { panic!("{record:?}") };
        let parent = parent.split('+').next().unwrap();
        let parent = if parent.starts_with("0x") { "host" } else { parent };
        format!("{} <-{parent}", batch.functions[usize::try_from(record.function).unwrap()].name)
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names, ["all <-host", "twice <-all", "leaf <-twice", "leaf <-twice", "many <-all", "mixed <-all"]);
    assert_eq!(batch.missed.total(), 0);
    assert_eq!(trace.finish().records, []);
}

fn graphed() {
    let host = host();
    let module = host.load(&built("sums", Compiler::Cc, PATCHABLE, SUMS)).unwrap();
    let trace = host.trace_functions(&TraceOptions::new(Mode::Graph)).unwrap();
    assert!(entry(&module, "leaf").starts_with("jmp"), "{}", entry(&module, "leaf"));
    assert_eq!(call(&module, "all", 5), expected(5));
    let batch = trace.finish();
    let shown: Vec<_> = batch
        .records
        .iter()
        .map(|record| {
            let name = &batch.functions[usize::try_from(record.function).unwrap()].name;
            match record.what {
                What::Enter => format!("{name} {{"),
                _ => format!("}} {name}"),
            }
        })
        .collect();
    assert_eq!(
        shown,
        [
            "all {", "twice {", "leaf {", "} leaf", "leaf {", "} leaf", "} twice", "many {", "} many", "mixed {",
            "} mixed", "} all",
        ]
    );
    assert!(batch.records.is_sorted_by_key(|record| record.at), "{:?}", batch.records);
    assert_eq!(call(&module, "all", 5), expected(5));
}
