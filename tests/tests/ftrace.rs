//! Function tracing, end to end: the calls that each tracer gets, their order, and the code at the function's entry.

use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use modload::text::{Addr, disassembled};
use modload::trace::ThreadAction;
use modload::trace::{Call, Filter, HostFunction, Mode, TraceError, TraceOptions};
use modload::{Host, Image, Input, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Case, Recorded, Watch, case, peek, watched};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(calls_are_heard_of_in_every_way_of_compiling),
        case!(several_hear_of_one_function),
        case!(calls_are_recorded),
        case!(entries_and_returns_are_recorded),
        case!(tracing_is_first_on_coming_and_last_on_going),
        case!(what_is_loaded_later_is_traced_before_its_init_runs),
        case!(what_stands_at_entries).needing("gcc"),
        Case::new("functions_of_the_hosts_own_with_five_nops", || own(&patchable())),
        Case::new("functions_of_the_hosts_own_that_call_fentry", || own(&counted())).needing("gcc"),
        case!(records_of_functions_that_are_not_there_are_not_told_of_others).needing("g++"),
        case!(what_cannot_be_traced_says_why).needing("gcc"),
        case!(a_recording_that_cannot_begin_is_in_the_way_of_none),
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

/// Returns the expected result of `all`.
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

/// Returns the code at the beginning of a function, without addresses.
fn entry(module: &Module, function: &str) -> String {
    let at = module.symbol_info(function).unwrap().addr;
    let text = disassembled(at, &peek(at, 10));
    let first = text.split("; ").find(|line| !line.starts_with("endbr64")).unwrap_or_default();
    first.split_whitespace().next().unwrap_or_default().to_owned()
}

fn calls_are_heard_of_in_every_way_of_compiling() {
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

/// Another debugger, say, has changed a function's entry.
fn a_recording_that_cannot_begin_is_in_the_way_of_none() {
    let host = host();
    let module = host.load(&built("sums", Compiler::Cc, PATCHABLE, SUMS)).unwrap();
    let at = module.symbol_info("leaf").unwrap().addr;
    let before = peek(at, 1);
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    let options = TraceOptions::new(Mode::Calls).pattern("sums:leaf").unwrap();
    memory.write_all_at(&[0xcc], at.get()).unwrap();
    let error = host.trace_functions(&options).expect_err("the entry is not the loader's");
    assert!(!matches!(error, TraceError::UnderWay), "{error}");
    memory.write_all_at(&before, at.get()).unwrap();
    let trace = host.trace_functions(&options).unwrap();
    assert_eq!(call(&module, "leaf", 1), 2);
    assert_eq!(trace.finish().records.len(), 1);
}

fn several_hear_of_one_function() {
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

fn calls_are_recorded() {
    let host = host();
    let module = host.load(&built("sums", Compiler::Cc, PATCHABLE, SUMS)).unwrap();
    let mut trace = host.trace_functions(&TraceOptions::new(Mode::Calls)).unwrap();
    assert_eq!(call(&module, "all", 5), expected(5));
    let batch = trace.drain();
    let names = batch.records.iter().map(|record| {
        let ThreadAction::Call { parent } = &record.what else { panic!("{record:?}") };
        let parent = parent.split('+').next().unwrap();
        let parent = if parent.starts_with("0x") { "host" } else { parent };
        format!("{} <-{parent}", batch.functions[usize::try_from(record.function).unwrap()].name)
    });
    let names: Vec<_> = names.collect();
    assert_eq!(names, ["all <-host", "twice <-all", "leaf <-twice", "leaf <-twice", "many <-all", "mixed <-all"]);
    assert_eq!(batch.missed.total(), 0);
    assert_eq!(trace.finish().records, []);
}

fn entries_and_returns_are_recorded() {
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
                ThreadAction::Enter => format!("{name} {{"),
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

fn tracing_is_first_on_coming_and_last_on_going() {
    let host = host();
    let recording = host.record();
    let module = host.load(&built("sums", Compiler::Cc, PATCHABLE, SUMS)).unwrap();
    module.unload().unwrap();
    insta::assert_snapshot!("first_and_last", recording.finish().order());
}

fn what_is_loaded_later_is_traced_before_its_init_runs() {
    const TEXT: &str = "
#include <modload/module.h>
__attribute__((noinline, noipa)) int helper(int a) { return a + 1; }
static int __init later_init(void) { return helper(1) + helper(2) - 5; }
static void __exit later_exit(void) { helper(3); }
module_init(later_init);
module_exit(later_exit);
";
    let host = host();
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = heard.clone();
    let tracer = move |call: &Call<'_>| log.lock().unwrap().push(format!("{call:?}"));
    let _tracing = host.trace("late?:*".parse().unwrap(), tracer).unwrap();
    let trace = host.trace_functions(&TraceOptions::new(Mode::Graph).pattern("later:*").unwrap()).unwrap();
    let module = host.load(&built("later", Compiler::Cc, PATCHABLE, TEXT)).unwrap();
    module.unload().unwrap();
    let recorded = Recorded::of(&trace.finish());
    let all = [heard.lock().unwrap().join("\n"), recorded.lines.concat().join("\n")].join("\n\n");
    insta::assert_snapshot!("before_init", all);
}

/// Returns the first bytes of a function, from its entry to the end of its site, without addresses.
fn shown(module: &Module, function: &str) -> String {
    let at = module.symbol_info(function).unwrap().addr;
    let text = disassembled(at, &peek(at, 16));
    let mut lines = Vec::new();
    for line in text.split("; ") {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_site = !line.starts_with("endbr64");
        let target = line.rsplit("0x").next().and_then(|hex| u64::from_str_radix(hex, 16).ok()).map(Addr::new);
        let leads = line.contains("call") || line.contains("jmp");
        lines.push(match target.filter(|_| leads && is_site) {
            Some(to) => line.split("0x").next().unwrap().to_owned() + &place(to),
            None => line,
        });
        if is_site {
            break;
        }
    }
    lines.join("; ")
}

/// Returns the half of the stub. Stubs begin at multiples of 32.
fn place(to: Addr) -> String {
    // movabs $function,%r11; jmp *(%r11)
    assert_eq!(peek(to, 2), [0x49, 0xbb], "no stub");
    format!("stub+{}", to.get() % 32)
}

fn what_stands_at_entries() {
    let mut lines = Vec::new();
    for (way, flags) in [
        ("five bytes", &["-O2", "-fno-pic", "-pg", "-mfentry", "-mrecord-mcount"][..]),
        ("six bytes", &["-O2", "-fPIC", "-pg", "-mfentry", "-mrecord-mcount"]),
        ("behind an ENDBR64", &["-O2", "-fPIC", "-fcf-protection", "-fpatchable-function-entry=5"]),
    ] {
        let host = host();
        let module = host.load(&built("sums", Compiler::Gcc, flags, SUMS)).unwrap();
        let before = shown(&module, "leaf");
        let tracing = host.trace("sums:leaf".parse().unwrap(), |_: &Call<'_>| {}).unwrap();
        let called = shown(&module, "leaf");
        let trace = host.trace_functions(&TraceOptions::new(Mode::Graph)).unwrap();
        let jumped = shown(&module, "leaf");
        drop(trace);
        assert_eq!(shown(&module, "leaf"), called);
        drop(tracing);
        let after = shown(&module, "leaf");
        lines.push(format!("{way}\n  before  {before}\n  called  {called}\n  jumped  {jumped}\n  after   {after}"));
    }
    insta::assert_snapshot!("entries", lines.join("\n"));
}

const COUNT: usize = 8;

// entries.c: functions that add 1 to 8, of both kinds.
#[link(name = "entries", kind = "static")]
unsafe extern "C" {
    static patchable_functions: [Adds; COUNT];
    static counted_functions: [Adds; COUNT];
}

type Adds = extern "C" fn(i32) -> i32;

fn patchable() -> [Adds; COUNT] {
    // SAFETY: a constant of entries.c, of the type that is stated.
    unsafe { patchable_functions }
}

fn counted() -> [Adds; COUNT] {
    // SAFETY: a constant of entries.c, of the type that is stated.
    unsafe { counted_functions }
}

/// Functions of this program itself: traced, recorded, and unchanged when no tracer is active.
fn own(functions: &[Adds; COUNT]) {
    let host = host();
    let named = functions.iter().zip(1..).map(|(function, number)| {
        #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
        let at = *function as *const ();
        // SAFETY: entries.c is compiled for tracing, and stays.
        unsafe { HostFunction::new(format!("add_{number}"), at) }
    });
    let named: Vec<_> = named.collect();
    host.register_host_functions(named.clone()).unwrap();
    let traceable = host.traceable();
    assert_eq!(traceable.len(), COUNT);
    assert!(traceable.iter().all(|one| one.function.module == "vmlinux" && one.why_not.is_none()), "{traceable:?}");
    let other = Host::builder().build().unwrap();
    let refused = other.register_host_functions(named).unwrap_err();
    assert_eq!(refused.to_string(), "the host's own function add_1 is registered already");
    let call_all = || {
        for (function, number) in functions.iter().zip(1..) {
            assert_eq!(function(10), 10 + number);
        }
    };
    let names: Vec<String> = (1..=COUNT).map(|number| format!("add_{number}")).collect();
    for watch in Watch::ALL {
        let seen = watched(&host, watch, "vmlinux:*", call_all);
        for heard in &seen.heard {
            assert!(
                heard.iter().map(|(name, count)| (name, *count)).eq(names.iter().map(|name| (name, 1))),
                "{watch:?}"
            );
        }
        let Some(recorded) = seen.recorded else { continue };
        let expected: Vec<String> = match watch.mode() {
            Some(Mode::Graph) => names.iter().flat_map(|name| [format!("{name} {{"), format!("}} {name}")]).collect(),
            _ => names.clone(),
        };
        assert_eq!((recorded.lines, recorded.missed.total()), (vec![expected], 0), "{watch:?}");
    }
    call_all();
}

/// Records of functions that do not exist: a function that another object's definition replaced has no name, and a
/// function of a repeated COMDAT group has no code. No record is attributed to a neighbour, and the neighbours' records
/// stay.
fn records_of_functions_that_are_not_there_are_not_told_of_others() {
    const WEAK: &str = "int first(int n) { return n; } __attribute__((weak)) int which(int n) { return n + 1; }
        int after(int n) { return n + 2; }";
    const STRONG: &str = "int which(int n) { return n + 100; }";
    const INLINE: &str = "inline int __attribute__((noinline)) twice(int n) { __asm__ volatile(\"\"); return 2 * n; }
        extern \"C\" int NAME(int n) { return twice(n) + 1; }";
    for form in ["5", "16,11", "8,3", "5,3", "16,14"] {
        let flag = format!("-fpatchable-function-entry={form}");
        let object = |name: &str, language, text: &str| {
            let compiled =
                object_from_text(name, language, text, Compiler::Gcc, &["-O2", "-fPIC", "-w", &flag]).unwrap();
            Input { name: name.to_owned(), bytes: std::fs::read(compiled).unwrap().into() }
        };
        let inline = |name| object(name, Language::Cxx, &INLINE.replace("NAME", name));
        for (inputs, expected) in [
            (
                vec![object("weak", Language::C, WEAK), object("strong", Language::C, STRONG)],
                ["after", "first", "which"],
            ),
            (vec![inline("one"), inline("two")], ["_Z5twicei", "one", "two"]),
        ] {
            let host = host();
            // SAFETY: the texts are ours.
            let _module = host.load(&unsafe { Image::trusted_unit(inputs) }.named("unit")).unwrap();
            let (named, others): (Vec<_>, Vec<_>) =
                host.traceable().into_iter().partition(|one| expected.contains(&&*one.function.name));
            let mut names: Vec<&str> = named.iter().map(|one| &*one.function.name).collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{form}: {named:?}, {others:?}");
            let nameless = "no symbol says that a function begins there";
            assert!(others.iter().all(|one| one.why_not.as_deref() == Some(nameless)), "{form}: {others:?}");
            let can = !["5,3", "16,14"].contains(&form);
            assert!(named.iter().all(|one| one.why_not.is_none() == can), "{form}: {named:?}");
        }
    }
}

fn what_cannot_be_traced_says_why() {
    const BEHIND: &str = "
.text
.globl behind
.type behind, @function
behind:
    mov %edi, %eax
0:  nop; nop; nop; nop; nop
    ret
.size behind, . - behind
.space 200, 0xcc
1:  nop; nop; nop; nop; nop
    ret
.section __patchable_function_entries, \"aw\", @progbits
.quad 0b, 1b
";
    const LEAF: &str = "int leaf(int a) { return a + 1; }";
    let behind = object_from_text("behind", Language::Assembler, BEHIND, Compiler::Gcc, &[]).unwrap();
    // SAFETY: the text is ours.
    let behind = unsafe { Image::trusted(std::fs::read(behind).unwrap()) }.named("behind");
    let mut lines = Vec::new();
    for image in [
        built("before", Compiler::Gcc, &["-O2", "-fPIC", "-fpatchable-function-entry=16,14"], LEAF),
        built("few", Compiler::Gcc, &["-O2", "-fPIC", "-fpatchable-function-entry=2"], LEAF),
        behind,
    ] {
        let host = host();
        let _module = host.load(&image).unwrap();
        lines.extend(
            host.traceable().into_iter().map(|one| {
                format!("{} [{}] {}", one.function.name, one.function.module, one.why_not.unwrap_or_default())
            }),
        );
    }
    insta::assert_snapshot!("untraceable", lines.join("\n"));
}
