//! Traces over the socket: how they begin, their messages, and all the ways in which they end.

mod scene;

use std::fs::File;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use modload::Host;
use modload::trace::{Batch, Record, ThreadAction};
use modload::trace::{Mode, TraceOptions};
use modload_control::protocol::{Called, ModuleName, Request, ResultType, TraceMode, TraceRequest, TraceableFunction};
use modload_control::{Client, ClientError, TraceNews};
use modload_fixtures::until;
use scene::{Raw, Scene, object};
use serde_json::Value;

/// Only one recording at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Ensures that no other recording is running while this is held. When it is dropped, also by a failing case, all
/// traces of the case have ended: its clients are gone by then, which ends their traces.
struct Alone(#[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl Drop for Alone {
    fn drop(&mut self) {
        // A panic here would abort the program and hide the reason why the case has failed.
        let Ok(host) = Host::builder().build() else { return };
        for _ in 0..60_000 {
            if host.trace_functions(&TraceOptions::new(Mode::Calls)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Returns a served host with the module, while no other test traces.
fn scene() -> (Scene, Alone) {
    let alone = Alone(ALONE.lock().unwrap_or_else(PoisonError::into_inner));
    let scene = Scene::new();
    let file = File::open(object("traced")).unwrap();
    let load = Request::Load { files: vec!["traced.o".into()], name: None, params: vec![], want: vec![] };
    scene.client().request::<ModuleName>(&load, &[file.as_fd()], |_, _| {}).unwrap();
    (scene, alone)
}

fn call(client: &mut Client, symbol: &str, argument: u64) {
    let request =
        Request::Call { symbol: symbol.into(), module: None, result: ResultType::I32, arguments: vec![argument] };
    client.request::<Called>(&request, &[], |_, _| {}).unwrap();
}

fn graph(patterns: &[&str], seconds: Option<u64>) -> TraceRequest {
    let patterns = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    TraceRequest { patterns, mode: TraceMode::Graph, buffer: None, seconds }
}

/// Sends a request, and waits until the trace has begun.
fn begin(raw: &mut Raw, line: &str) {
    raw.send(format!("{line}\n").as_bytes(), &[]);
    let line = raw.line().expect("an event");
    assert_eq!(line["event"]["event"], "tracing", "{line}");
}

/// Returns the answer, after all batches.
fn answer(raw: &mut Raw) -> Value {
    std::iter::from_fn(|| raw.line()).find(|line| line["trace"].is_null()).expect("an answer")
}

const TRACE: &str = r#"{"id":1,"op":"trace","patterns":["traced:*"],"mode":"graph"}"#;

#[test]
fn every_call_is_told_in_order() {
    let (scene, _alone) = scene();
    let (stop, stopper) = UnixStream::pair().unwrap();
    let mut stopper = Some(stopper);
    let mut caller = scene.client();
    let (mut whole, mut begun) = (Batch::default(), None);
    let traced = scene.client().trace(&graph(&["traced:traced_[lo]*"], None), stop, |told| {
        match told {
            TraceNews::Began(tracing) => {
                begun = Some(tracing);
                call(&mut caller, "traced_outer", 5);
                call(&mut caller, "traced_fib", 5);
            }
            TraceNews::Batch(batch) => {
                whole.functions.extend(batch.functions);
                whole.threads.extend(batch.threads);
                whole.records.extend(batch.records);
                // From now on the trace ends.
                stopper = None;
            }
        }
        ControlFlow::Continue(())
    });
    assert_eq!(traced.unwrap().missed.total(), 0);
    let begun = begun.unwrap();
    assert_eq!((begun.pid, begun.functions), (std::process::id(), 2));
    assert!(whole.functions.iter().all(|function| function.module == "traced"));
    let names: Vec<&str> = whole.functions.iter().map(|function| &*function.name).collect();
    let number = |name| u32::try_from(names.iter().position(|&known| known == name).unwrap()).unwrap();
    let (outer, leaf) = (number("traced_outer"), number("traced_leaf"));
    let told: Vec<_> = whole.records.iter().map(|Record { function, what, .. }| (*function, what.clone())).collect();
    let leaves = vec![[(leaf, ThreadAction::Enter), (leaf, ThreadAction::Leave)]; 5].concat();
    assert_eq!(told, [vec![(outer, ThreadAction::Enter)], leaves, vec![(outer, ThreadAction::Leave)]].concat());
    assert!(whole.records.is_sorted_by_key(|record| record.at));
    assert_eq!(whole.threads.len(), 1);
}

#[test]
fn it_ends_when_its_time_is_over() {
    let (scene, _alone) = scene();
    let (stop, _stopper) = UnixStream::pair().unwrap();
    let begun = Instant::now();
    scene.client().trace(&graph(&[], Some(1)), stop, |_| ControlFlow::Continue(())).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn it_ends_when_the_client_says_anything() {
    let (scene, _alone) = scene();
    let mut raw = scene.raw();
    begin(&mut raw, TRACE);
    raw.send(b"{\"id\":2,\"op\":\"ping\"}\n", &[]);
    let line = answer(&mut raw);
    assert!(line["id"] == 1 && line["ok"]["missed"]["dropped"].is_u64(), "{line}");
    assert_eq!(raw.line().unwrap()["id"], 2, "it is the next request");

    // A second request in the same write ends the trace.
    begin(&mut raw, &format!("{TRACE}\n{{\"id\":2,\"op\":\"ping\"}}"));
    assert_eq!(answer(&mut raw)["id"], 1);
    assert_eq!(raw.line().unwrap()["id"], 2);

    // One byte ends the trace, and so does the end of the client's side.
    begin(&mut raw, TRACE);
    raw.send(b"{", &[]);
    assert_eq!(answer(&mut raw)["id"], 1);
    raw.send(b"\"id\":2,\"op\":\"ping\"}\n", &[]);
    assert_eq!(raw.line().unwrap()["id"], 2);
    begin(&mut raw, TRACE);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&mut raw)["id"], 1);
    assert_eq!(raw.line(), None);
}

#[test]
fn one_runs_at_a_time_and_none_outlives_its_client() {
    let (scene, _alone) = scene();
    let mut first = scene.raw();
    begin(&mut first, TRACE);
    let mut second = scene.raw();
    second.send(format!("{TRACE}\n").as_bytes(), &[]);
    let refused = second.line().unwrap();
    assert_eq!(refused["error"]["kind"], "trace", "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("a recording is under way already"), "{refused}");
    drop(first);
    until("the trace ends with its client", || {
        second.send(format!("{TRACE}\n").as_bytes(), &[]);
        second.line().unwrap()["error"].is_null()
    });
}

#[test]
fn a_client_that_does_not_read_loses_its_trace_and_nobody_waits() {
    let (scene, _alone) = scene();
    let (mut caller, mut other) = (scene.client(), scene.raw());
    let mut is_over = || {
        other.send(format!("{TRACE}\n").as_bytes(), &[]);
        let is_over = other.line().unwrap()["error"].is_null();
        if is_over {
            // This client has begun a trace itself, and ends it.
            other.send(b"{\"id\":2,\"op\":\"ping\"}\n", &[]);
            assert_eq!(answer(&mut other)["id"], 1);
            assert_eq!(other.line().unwrap()["id"], 2);
        }
        is_over
    };
    until("callers are done before its trace is given up", || {
        let mut deaf = scene.raw();
        begin(&mut deaf, r#"{"id":1,"op":"trace","patterns":["traced:*"],"mode":"graph","buffer":8388608}"#);
        // More records than any socket buffers. The calling threads continue at their own pace, which may be slow on a
        // busy machine.
        for _ in 0..10 {
            call(&mut caller, "traced_outer", 100_000);
        }
        let nobody_waited = !is_over();
        until("its trace is over", || {
            std::thread::sleep(Duration::from_millis(100));
            is_over()
        });
        nobody_waited
    });
}

#[test]
fn a_great_batch_comes_in_parts_and_is_one_for_the_client() {
    let (scene, _alone) = scene();
    let asked = TraceRequest { buffer: Some(8 << 20), ..graph(&["traced_outer", "traced_leaf"], None) };
    let (stop, stopper) = UnixStream::pair().unwrap();
    let (mut stopper, mut caller) = (Some(stopper), scene.client());
    let (mut entered, mut left, mut batches) = (0, 0, 0);
    let traced = scene.client().trace(&asked, stop, |told| {
        match told {
            TraceNews::Began(_) => call(&mut caller, "traced_outer", 60_000),
            TraceNews::Batch(batch) => {
                let count = |what: &ThreadAction| batch.records.iter().filter(|record| record.what == *what).count();
                entered += count(&ThreadAction::Enter);
                left += count(&ThreadAction::Leave);
                batches += 1;
                stopper = None;
            }
        }
        ControlFlow::Continue(())
    });
    let missed = traced.unwrap().missed;
    assert_eq!((entered, left), (60_001, 60_001), "{missed:?}");
    assert!(batches < 10, "{batches}");

    // The batch is sent in several lines of limited length.
    let mut raw = scene.raw();
    begin(&mut raw, &format!(r#"{{"id":1,"op":"trace","patterns":["traced:*"],"mode":"graph","buffer":{}}}"#, 8 << 20));
    call(&mut caller, "traced_outer", 60_000);
    let mut more = 0;
    while let Some(line) = raw.line().filter(|line| line["ok"].is_null()) {
        assert!(line.to_string().len() < 2 << 20);
        more += usize::from(line["more"] == true);
        if more == 3 {
            raw.stream.shutdown(Shutdown::Write).unwrap();
        }
    }
    assert!(more >= 3, "{more}");
}

#[test]
fn a_server_that_stops_ends_it_in_order() {
    let (mut scene, _alone) = scene();
    let mut raw = scene.raw();
    begin(&mut raw, TRACE);
    let ended = scene.stop().unwrap();
    assert_eq!(ended.unfinished, 0);
    let line = answer(&mut raw);
    assert!(line["ok"]["missed"].is_object(), "{line}");
}

#[test]
fn whoever_breaks_off_hears_no_more() {
    let (scene, _alone) = scene();
    let (stop, _stopper) = UnixStream::pair().unwrap();
    let mut told = 0;
    scene
        .client()
        .trace(&graph(&[], None), stop, |_| {
            told += 1;
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(told, 1);
}

#[test]
fn nonsense_is_refused() {
    let (scene, _alone) = scene();
    let mut raw = scene.raw();
    let mut kind = |line: &str| {
        raw.send(format!("{line}\n").as_bytes(), &[]);
        let answer = raw.line().expect("an answer");
        answer["error"]["kind"].as_str().unwrap_or_else(|| panic!("{line}: {answer}")).to_owned()
    };
    for (fields, expected) in [
        (r#""patterns":["a["]"#, "pattern"),
        (r#""patterns":[""]"#, "pattern"),
        (r#""patterns":["m:"]"#, "pattern"),
        (r#""mode":"none""#, "bad_request"),
        (r#""buffer":0"#, "trace"),
        (r#""buffer":1099511627776"#, "trace"),
        (r#""buffer":-1"#, "bad_request"),
        (r#""seconds":-1"#, "bad_request"),
        (r#""no_such_field":1"#, "bad_request"),
    ] {
        assert_eq!(kind(&format!(r#"{{"id":1,"op":"trace",{fields}}}"#)), expected, "{fields}");
    }
    assert_eq!(kind(r#"{"id":1,"op":"traceable","patterns":["["]}"#), "pattern");
    // A time beyond the range of the clock means no limit.
    begin(&mut raw, r#"{"id":1,"op":"trace","seconds":18446744073709551615}"#);
}

#[test]
fn what_can_be_traced_is_listed() {
    let (scene, _alone) = scene();
    let list = |patterns: &[&str]| -> Vec<TraceableFunction> {
        let patterns = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        scene.client().request(&Request::Traceable { patterns }, &[], |_, _| {}).unwrap()
    };
    let names = |patterns: &[&str]| -> Vec<String> {
        let found = list(patterns).into_iter().filter(|it| it.why_not.is_none());
        let mut names: Vec<String> =
            found.filter(|it| it.function.module == "traced").map(|it| it.function.name).collect();
        names.sort();
        names
    };
    assert_eq!(names(&[]), ["traced_fib", "traced_leaf", "traced_outer"]);
    assert_eq!(names(&["!traced_leaf"]), ["traced_fib", "traced_outer"]);
    assert_eq!(names(&["traced:*_[fl]*", "!*fib"]), ["traced_leaf"]);
    assert_eq!(names(&["greet:*"]), [""; 0]);
    assert!(matches!(
        scene.client().request::<Value>(&Request::Traceable { patterns: vec!["[".into()] }, &[], |_, _| {}),
        Err(ClientError::Refused(refused)) if refused.kind == "pattern"
    ));
}
