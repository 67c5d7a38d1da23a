//! Traces of real runs conform to the Trace Event Format: no unknown field, no missing field, each field of its type;
//! ends are nested in their threads, and times never decrease.
//!
//! The types below are a schema written from the format's document ("Trace Event Format", sections JSON Object Format,
//! Duration Events, Instant Events, Metadata Events); they refuse unknown fields.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use modload::trace::Batch;
use modload::trace::render::{Form, TracedProcess};
use modload::trace::{Mode, TraceOptions};
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use modload_tests::case;
use serde::Deserialize;

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(what_is_no_trace_is_refused),
        case!(threads_that_call_and_call_themselves),
        case!(functions_that_do_not_return),
        case!(functions_left_by_exceptions).needing("g++"),
        case!(calls_alone),
        case!(nothing_at_all),
    ])
}

/// JSON Object Format.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    trace_events: Vec<Event>,
    display_time_unit: Unit,
    other_data: OtherData,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Unit {
    Ms,
    Ns,
}

/// Defined by us: the counts of missing calls, by kind.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct OtherData {
    missed: BTreeMap<String, u64>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, tag = "ph")]
enum Event {
    B {
        pid: u32,
        tid: i32,
        ts: f64,
        name: String,
        cat: String,
    },
    E {
        pid: u32,
        tid: i32,
        ts: f64,
        name: String,
        cat: String,
        args: Option<Ended>,
    },
    #[serde(rename = "i")]
    Instant {
        pid: u32,
        tid: i32,
        ts: f64,
        name: String,
        cat: String,
        s: Scope,
        args: Parent,
    },
    M {
        pid: u32,
        tid: Option<i32>,
        name: Metadata,
        args: Named,
    },
}

#[derive(Deserialize, PartialEq, Eq, Clone, Copy, Debug)]
#[serde(rename_all = "lowercase")]
enum Ended {
    Unwound(True),
    Unfinished(True),
}

/// A field that is present only if it is true.
#[derive(Deserialize, PartialEq, Eq, Clone, Copy, Debug)]
#[serde(try_from = "bool")]
struct True;

impl TryFrom<bool> for True {
    type Error = &'static str;

    fn try_from(is: bool) -> Result<True, &'static str> {
        if is { Ok(True) } else { Err("what is not so is not said") }
    }
}

/// How wide an instant is drawn.
#[derive(Deserialize, PartialEq, Eq, Debug)]
enum Scope {
    #[serde(rename = "g")]
    Global,
    #[serde(rename = "p")]
    Process,
    #[serde(rename = "t")]
    Thread,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Parent {
    parent: String,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Metadata {
    ProcessName,
    ThreadName,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

/// The contents of a trace.
#[derive(Default, Debug)]
struct Seen {
    /// Entries, or calls, of each function.
    calls: BTreeMap<String, usize>,
    /// For each thread that has called anything, its name.
    threads: BTreeMap<i32, String>,
    unwound: Vec<String>,
    unfinished: Vec<String>,
    missed: u64,
}

/// Reads a trace, and checks all rules that every trace must follow.
fn check(text: &str) -> Seen {
    let document: Document = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(document.display_time_unit, Unit::Ns);
    let mut seen = Seen { missed: document.other_data.missed.values().sum(), ..Seen::default() };
    let (mut open, mut clocks) = (BTreeMap::<i32, Vec<(String, String)>>::new(), BTreeMap::new());
    let mut processes = 0;
    for event in &document.trace_events {
        if let Event::B { pid, tid, ts, .. } | Event::E { pid, tid, ts, .. } | Event::Instant { pid, tid, ts, .. } =
            event
        {
            assert_eq!(*pid, std::process::id());
            assert!(seen.threads.contains_key(tid), "{tid} is named before it does anything");
            let before = clocks.insert(*tid, *ts);
            assert!(before.is_none_or(|before| before <= *ts), "{tid}: {before:?}, then {ts}");
        }
        match event {
            Event::M { name: Metadata::ProcessName, args, tid: None, pid } => {
                assert_eq!((args.name.as_str(), *pid), ("tests", std::process::id()));
                processes += 1;
            }
            Event::M { name: Metadata::ThreadName, args, tid: Some(tid), .. } => {
                assert!(seen.threads.insert(*tid, args.name.clone()).is_none(), "{tid} is named once");
            }
            Event::M { .. } => panic!("{event:?}"),
            Event::B { tid, name, cat, .. } => {
                open.entry(*tid).or_default().push((name.clone(), cat.clone()));
                *seen.calls.entry(name.clone()).or_default() += 1;
            }
            Event::E { tid, name, cat, args, .. } => {
                let begun = open.get_mut(tid).and_then(Vec::pop);
                assert_eq!(begun, Some((name.clone(), cat.clone())), "{tid}");
                match args {
                    Some(Ended::Unwound(True)) => seen.unwound.push(name.clone()),
                    Some(Ended::Unfinished(True)) => seen.unfinished.push(name.clone()),
                    None => {}
                }
            }
            Event::Instant { name, cat, s, args, .. } => {
                assert!(!cat.is_empty());
                assert_eq!(*s, Scope::Thread);
                assert!(!args.parent.is_empty());
                *seen.calls.entry(name.clone()).or_default() += 1;
            }
        }
    }
    assert_eq!(processes, 1);
    assert!(open.values().all(Vec::is_empty), "{open:?}");
    seen
}

fn chrome(batches: impl IntoIterator<Item = Batch>) -> Seen {
    check(&Form::Chrome.whole(&TracedProcess { pid: std::process::id(), name: "tests".into() }, batches))
}

const WAY: &[&str] = &["-O2", "-fPIC", "-fpatchable-function-entry=5"];

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

fn traced(host: &Host) -> Module {
    let object = Fixture::new("traced").object(Compiler::Cc, WAY).unwrap();
    // SAFETY: the fixture is ours.
    host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("traced")).unwrap()
}

fn built(host: &Host, name: &str, language: Language, text: &str) -> Module {
    let object = object_from_text(name, language, text, Compiler::Cc, WAY).unwrap();
    // SAFETY: the texts are ours.
    host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)).unwrap()
}

fn call(module: &Module, function: &str, argument: i32) -> i32 {
    // SAFETY: every function that is called here is an `int f(int)`.
    let function = unsafe { module.symbol::<extern "C-unwind" fn(i32) -> i32>(function) }.unwrap();
    function(argument)
}

fn graph() -> TraceOptions {
    TraceOptions::new(Mode::Graph).buffer(16 << 20)
}

fn what_is_no_trace_is_refused() {
    const EVENT: &str = r#"{"ph":"B","pid":1,"tid":1,"ts":1,"name":"f","cat":"m"}"#;
    let with = |events: &str| {
        let text = format!(r#"{{"displayTimeUnit":"ns","traceEvents":[{events}],"otherData":{{"missed":{{}}}}}}"#);
        serde_json::from_str::<Document>(&text)
    };
    assert!(with(EVENT).is_ok());
    for (good, bad) in [
        (r#""ph":"B""#, r#""ph":"Q""#),
        (r#""ts":1"#, r#""ts":"1""#),
        (r#""pid":1,"#, ""),
        (r#""cat":"m""#, r#""cat":"m","more":1"#),
        (r#""tid":1"#, r#""tid":1.5"#),
    ] {
        let event = EVENT.replace(good, bad);
        assert!(event != EVENT && with(&event).is_err(), "{event}");
    }
    assert!(serde_json::from_str::<Document>(r#"{"traceEvents":[]}"#).is_err());
}

fn threads_that_call_and_call_themselves() {
    let host = host();
    let module = traced(&host);
    let mut trace = host.trace_functions(&graph().pattern("traced:*").unwrap()).unwrap();
    let mut batches = Vec::new();
    thread::scope(|scope| {
        let begun: Vec<_> = (0..4)
            .map(|number| {
                let module = &module;
                let thread = thread::Builder::new().name(format!("caller \"{number}\""));
                let work = move || {
                    for _ in 0..50 {
                        assert_eq!((call(module, "traced_outer", 100), call(module, "traced_fib", 10)), (5050, 55));
                    }
                };
                thread.spawn_scoped(scope, work).unwrap()
            })
            .collect();
        while begun.iter().any(|thread| !thread.is_finished()) {
            batches.push(trace.drain());
        }
    });
    batches.push(trace.finish());
    let seen = chrome(batches);
    let calls = |name: &str| seen.calls[name];
    assert_eq!([calls("traced_outer"), calls("traced_leaf"), calls("traced_fib")], [200, 20_000, 35_400]);
    let names: Vec<&str> = seen.threads.values().map(String::as_str).collect();
    assert_eq!((names.len(), names.iter().filter(|name| name.starts_with("caller ")).count()), (4, 4), "{names:?}");
    assert!(seen.unwound.is_empty() && seen.unfinished.is_empty() && seen.missed == 0, "{seen:?}");
}

/// Set when a function may return.
static GO: AtomicI32 = AtomicI32::new(0);

fn functions_that_do_not_return() {
    let host = Host::builder().export("go", GO.as_ptr().cast_const()).build().unwrap();
    let text = "extern volatile int go;
        __attribute__((noinline)) int inner(int a) { while (!go) ; return a; }
        int outer(int a) { return inner(a) + 1; }";
    let module = built(&host, "waits", Language::C, text);
    let trace = host.trace_functions(&graph()).unwrap();
    let seen = thread::scope(|scope| {
        let waits = scope.spawn(|| call(&module, "outer", 1));
        let mut trace = trace;
        let mut batches = vec![trace.drain()];
        while batches.iter().map(|batch| batch.records.len()).sum::<usize>() < 2 {
            batches.push(trace.drain());
        }
        batches.push(trace.finish());
        GO.store(1, Ordering::Release);
        assert_eq!(waits.join().unwrap(), 2);
        chrome(batches)
    });
    assert_eq!((seen.unfinished, seen.unwound), (vec!["inner".to_owned(), "outer".to_owned()], vec![]));
}

fn functions_left_by_exceptions() {
    // SAFETY: the C++ runtime, whose constructors do no harm.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null(), "the C++ runtime is there if its compiler is");
    let host = host();
    let text = "extern \"C\" {
        __attribute__((noinline)) int thrower(int a) { if (a > 0) throw a; return a; }
        __attribute__((noinline)) int between(int a) { return thrower(a) + 1; }
        __attribute__((noinline)) int catcher(int a) { try { return between(a); } catch (int b) { return b + 10; } }
        }";
    let module = built(&host, "throws", Language::Cxx, text);
    let trace = host.trace_functions(&graph()).unwrap();
    assert_eq!([call(&module, "catcher", 5), call(&module, "catcher", 0), call(&module, "catcher", 6)], [15, 1, 16]);
    let seen = chrome([trace.finish()]);
    assert_eq!(seen.unwound, ["thrower", "between", "thrower", "between"]);
    assert_eq!(seen.calls, ["between", "catcher", "thrower"].map(|name| (name.to_owned(), 3)).into());
}

fn calls_alone() {
    let host = host();
    let module = traced(&host);
    let trace = host.trace_functions(&TraceOptions::new(Mode::Calls)).unwrap();
    call(&module, "traced_outer", 10);
    call(&module, "traced_fib", 5);
    let seen = chrome([trace.finish()]);
    let counts = [("traced_fib", 15), ("traced_leaf", 10), ("traced_outer", 1)];
    assert_eq!(seen.calls, counts.map(|(name, count)| (name.to_owned(), count)).into());
}

fn nothing_at_all() {
    let host = host();
    let trace = host.trace_functions(&graph()).unwrap();
    let seen = chrome([trace.finish()]);
    assert!(seen.calls.is_empty() && seen.threads.is_empty(), "{seen:?}");
}
