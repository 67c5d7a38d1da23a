//! Rendered recordings: snapshots of one recording with everything in it, and properties of any recording.

use std::collections::BTreeMap;
use std::fmt::Write;

use modload_ftrace::render::{Form, Renderer, TracedProcess};
use modload_ftrace::trace::{Batch, Missed, Record, RecordedThread, ThreadAction, TracedFunction};
use serde_json::Value;

const FORMS: [Form; 5] = [Form::Function, Form::Graph, Form::Chrome, Form::Summary, Form::SummaryJson];

fn process() -> TracedProcess {
    TracedProcess { pid: 4321, name: "modhost".into() }
}

fn function(module: &str, name: &str) -> TracedFunction {
    TracedFunction { module: module.into(), name: name.into() }
}

fn thread(tid: i32, name: &str) -> RecordedThread {
    RecordedThread { tid, name: name.into() }
}

/// Parses records in lines of `THREAD TIME > FUNCTION`, with `<` for the end, `^` for an exception, and
/// `FUNCTION <- PARENT` for a call.
fn records(lines: &str) -> Vec<Record> {
    let record = |line: &str| {
        let (line, parent) = line.split_once(" <- ").map_or((line, None), |(line, parent)| (line, Some(parent)));
        let words: Vec<&str> = line.split_whitespace().collect();
        let [thread, at, what, function] = words[..] else { panic!("{line}") };
        let what = match (what, parent) {
            (">", None) => ThreadAction::Enter,
            ("<", None) => ThreadAction::Leave,
            ("^", None) => ThreadAction::Unwound,
            (">", Some(parent)) => ThreadAction::Call { parent: parent.into() },
            _ => panic!("{line}"),
        };
        Record { thread: thread.parse().unwrap(), at: at.parse().unwrap(), function: function.parse().unwrap(), what }
    };
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(record).collect()
}

/// Two threads: leaves, recursion, an exception, every mark, a function that never returns, and missed calls. One call
/// lies on both sides of the border of two batches, and the second batch has records that are older than the end of the
/// first batch.
fn graph() -> [Batch; 2] {
    let first = Batch {
        functions: vec![
            function("vmlinux", "main_loop"),
            function("greet", "greet_hello"),
            function("greet", "fib"),
            function("evil", "\\u{1b}[2J\"quoted\""),
        ],
        threads: vec![thread(4321, "main"), thread(4400, "worker \"two\"")],
        records: records(
            "
            0    1000 > 0
            0    1100 > 1
            0    1413 < 1
            0   12000 > 3
            0   22001 < 3
            0   30000 > 1
            1   10500 > 2
            1   11000 > 2
            1   11200 > 2
            1   11250 < 2
            1   11900 < 2
            1   45000 < 2
            ",
        ),
        missed: Missed::default(),
    };
    let second = Batch {
        functions: vec![function("greet", "thrower")],
        threads: vec![],
        records: records(
            "
            0       40000 < 1
            0     1000000 > 4
            0     1000500 > 1
            0     3000000 ^ 1
            0    20000000 ^ 4
            0   500000000 < 0
            0   500000001 > 0
            0  3000000000 > 1
            0  4000000000 < 1
            1      100000 > 2
            ",
        ),
        missed: Missed { dropped: 7, deep: 1, ..Missed::default() },
    };
    [first, second]
}

fn calls() -> [Batch; 1] {
    [Batch {
        functions: vec![function("greet", "greet_hello"), function("vmlinux", "helper")],
        threads: vec![thread(4321, "main"), thread(4400, "w")],
        records: records(
            "
            0       1000 > 0 <- main+0x12/0x40
            0 2500000001 > 1 <- greet_hello+0x8/0x20 [greet]
            1       1500 > 0 <- 0x7f0000001000
            ",
        ),
        missed: Missed { nested: 2, ..Missed::default() },
    }]
}

#[test]
fn the_function_tracer() {
    insta::assert_snapshot!("function_of_calls", Form::Function.whole(&process(), calls()));
    insta::assert_snapshot!("function_of_graph", Form::Function.whole(&process(), graph()));
}

#[test]
fn the_graph_tracer() {
    insta::assert_snapshot!("graph", Form::Graph.whole(&process(), graph()));
    insta::assert_snapshot!("graph_of_calls", Form::Graph.whole(&process(), calls()));
}

#[test]
fn chrome() {
    insta::assert_snapshot!("chrome", Form::Chrome.whole(&process(), graph()));
    insta::assert_snapshot!("chrome_of_calls", Form::Chrome.whole(&process(), calls()));
}

#[test]
fn summaries() {
    insta::assert_snapshot!("summary", Form::Summary.whole(&process(), graph()));
    insta::assert_snapshot!("summary_of_calls", Form::Summary.whole(&process(), calls()));
    insta::assert_snapshot!("summary_json", Form::SummaryJson.whole(&process(), graph()));
    insta::assert_snapshot!("summary_json_of_calls", Form::SummaryJson.whole(&process(), calls()));
}

#[test]
fn nothing_is_told_as_nothing() {
    let told: String = FORMS.iter().fold(String::new(), |mut told, form| {
        writeln!(told, "--- {form:?}\n{}", form.whole(&process(), [])).unwrap();
        told
    });
    insta::assert_snapshot!("nothing", told);
    for form in [Form::Chrome, Form::SummaryJson] {
        serde_json::from_str::<Value>(&form.whole(&process(), [])).unwrap();
    }
}

#[test]
fn what_can_be_told_is_told_at_once() {
    let [first, second] = graph();
    let mut text = String::new();
    let mut renderer = Renderer::begin(Form::Function, &process(), &mut text).unwrap();
    assert!(text.starts_with("# tracer: function\n"));
    let lines = |text: &mut String| std::mem::take(text).lines().filter(|line| !line.starts_with('#')).count();
    lines(&mut text);
    renderer.batch(first, &mut text).unwrap();
    assert_eq!(
        lines(&mut text),
        0,
        "the second thread's records may be younger than some that come with the next batch"
    );
    renderer.batch(second, &mut text).unwrap();
    assert_eq!(lines(&mut text), 7, "all entries of the first batch");
    renderer.batch(Batch::default(), &mut text).unwrap();
    assert_eq!(lines(&mut text), 5, "those of the second");
    renderer.end(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn names_cannot_break_out() {
    let evil = "a\n\u{1b}[2J\"}],\\";
    let batch = Batch {
        functions: vec![function(evil, evil)],
        threads: vec![thread(1, evil)],
        records: vec![
            Record { thread: 0, at: 1, function: 0, what: ThreadAction::Enter },
            Record { thread: 0, at: 2, function: 0, what: ThreadAction::Call { parent: evil.into() } },
            Record { thread: 0, at: 3, function: 0, what: ThreadAction::Leave },
        ],
        missed: Missed::default(),
    };
    let process = TracedProcess { pid: 1, name: evil.into() };
    for form in FORMS {
        let text = form.whole(&process, [batch.clone()]);
        assert!(!text.contains(|letter: char| letter.is_control() && letter != '\n'), "{form:?}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("[2J") || line.starts_with('\\')), "{form:?}: {text:?}");
        if matches!(form, Form::Chrome | Form::SummaryJson) {
            let value: Value = serde_json::from_str(&text).unwrap();
            let names: Vec<_> = strings(&value).into_iter().filter(|text| text.starts_with("a\\")).collect();
            assert!(names.len() >= 2 && names.iter().all(|name| name.ends_with("\"}],\\")), "{form:?}: {names:?}");
        }
    }
}

/// Returns all strings in a value.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(strings).collect(),
        Value::Object(fields) => fields.values().flat_map(strings).collect(),
        _ => vec![],
    }
}

/// A generator of numbers that are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX generator. The low bits are poor.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// The actions of threads, and how they were drained: the batches, and the expected result.
struct Scene {
    batches: Vec<Batch>,
    /// The actions of each thread in order: whether it entered, the function, and the time.
    did: BTreeMap<u32, Vec<(bool, u32, u64)>>,
}

/// Makes threads that call nested functions for some thousand steps, each thread at its own pace. The threads are
/// drained from time to time, one after the other.
fn scene(seed: u64) -> Scene {
    let random = &mut Random(seed);
    let (threads, functions) = (1 + random.below(5), 1 + random.below(4));
    let mut batches = vec![Batch {
        functions: (0..functions).map(|n| function("m", &format!("f{n}"))).collect(),
        threads: (0..threads).map(|n| thread(100 + i32::try_from(n).unwrap(), "t")).collect(),
        ..Batch::default()
    }];
    let (mut now, mut stacks) = (0, BTreeMap::<u32, Vec<u32>>::new());
    let mut rings = BTreeMap::<u32, Vec<Record>>::new();
    let mut did = BTreeMap::<u32, Vec<(bool, u32, u64)>>::new();
    let mut step = |random: &mut Random, now: &mut u64, rings: &mut BTreeMap<u32, Vec<Record>>| {
        // Several threads may act at the same time.
        *now += random.below(3) * random.below(500);
        let thread = u32::try_from(random.below(threads)).unwrap();
        let stack = stacks.entry(thread).or_default();
        let enter = stack.is_empty() || stack.len() < 8 && random.below(2) == 0;
        let function = if enter { u32::try_from(random.below(functions)).unwrap() } else { *stack.last().unwrap() };
        let what = match enter {
            true => ThreadAction::Enter,
            false if random.below(5) == 0 => ThreadAction::Unwound,
            false => ThreadAction::Leave,
        };
        match enter {
            true => stack.push(function),
            false => stack.truncate(stack.len() - 1),
        }
        rings.entry(thread).or_default().push(Record { thread, at: *now, function, what });
        did.entry(thread).or_default().push((enter, function, *now));
    };
    for _ in 0..20 {
        for _ in 0..random.below(100) {
            step(random, &mut now, &mut rings);
        }
        let mut batch = Batch::default();
        // While one thread is drained the others continue.
        for thread in 0..u32::try_from(threads).unwrap() {
            batch.records.append(rings.entry(thread).or_default());
            for _ in 0..random.below(4) {
                step(random, &mut now, &mut rings);
            }
        }
        batches.push(batch);
    }
    batches.push(Batch { records: rings.into_values().flatten().collect(), ..Batch::default() });
    Scene { batches, did }
}

const SEEDS: std::ops::Range<u64> = 0..200;

#[test]
fn lines_are_in_order_and_none_is_lost() {
    for seed in SEEDS {
        let Scene { batches, did } = scene(seed);
        let text = Form::Function.whole(&process(), batches);
        let times: Vec<u64> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let time = line.split_whitespace().nth(1).unwrap().trim_end_matches(':');
                time.replace('.', "").parse().unwrap()
            })
            .collect();
        assert!(times.is_sorted(), "seed {seed}");
        assert_eq!(times.len(), did.values().flatten().filter(|(enter, ..)| *enter).count(), "seed {seed}");
    }
}

#[test]
fn every_begin_has_its_end() {
    for seed in SEEDS {
        let Scene { batches, did } = scene(seed);
        let value: Value = serde_json::from_str(&Form::Chrome.whole(&process(), batches)).unwrap();
        let (mut open, mut seen) =
            (BTreeMap::<i64, Vec<String>>::new(), BTreeMap::<i64, Vec<(bool, String, String)>>::new());
        let mut last = BTreeMap::<i64, f64>::new();
        for event in value["traceEvents"].as_array().unwrap() {
            let phase = event["ph"].as_str().unwrap();
            if phase == "M" {
                continue;
            }
            let (tid, name) = (event["tid"].as_i64().unwrap(), event["name"].as_str().unwrap().to_owned());
            let ts = event["ts"].as_f64().unwrap();
            assert!(last.insert(tid, ts).is_none_or(|before| before <= ts), "seed {seed}: time goes back");
            let open = open.entry(tid).or_default();
            match phase {
                "B" => open.push(name.clone()),
                "E" => assert_eq!(open.pop().as_ref(), Some(&name), "seed {seed}"),
                other => panic!("seed {seed}: {other}"),
            }
            if event["args"]["unfinished"].is_null() {
                seen.entry(tid).or_default().push((phase == "B", name, event["ts"].to_string()));
            }
        }
        assert!(open.values().all(Vec::is_empty), "seed {seed}: {open:?}");
        // Checks each thread's own order, and its times to the nanosecond.
        for (thread, did) in did {
            let told = &seen[&(100 + i64::from(thread))];
            let did: Vec<_> = did
                .iter()
                .map(|(enter, function, at)| {
                    let us = serde_json::from_str::<Value>(&format!("{}.{:03}", at / 1000, at % 1000)).unwrap();
                    (*enter, format!("f{function}"), us.to_string())
                })
                .collect();
            assert_eq!(told, &did, "seed {seed}, thread {thread}");
        }
    }
}

#[test]
fn braces_of_the_graph_are_balanced() {
    for seed in SEEDS {
        let Scene { batches, did } = scene(seed);
        let text = Form::Graph.whole(&process(), batches);
        let mut open = BTreeMap::<String, Vec<String>>::new();
        let (mut entries, mut exits) = (0, 0);
        for line in text.lines().filter(|line| !line.starts_with('#') && line.contains('|')) {
            let (left, right) = line.split_once("|  ").unwrap();
            let open = open.entry(left.split_once(')').unwrap().0.trim().to_owned()).or_default();
            let call = right.trim_start();
            let depth = (right.len() - call.len()) / 2;
            if let Some(name) = call.strip_suffix("() {") {
                assert_eq!(depth, open.len(), "seed {seed}: {line}");
                open.push(name.to_owned());
                entries += 1;
            } else if let Some(name) = call.strip_prefix("} /* ") {
                let name = name.trim_end_matches(" */").trim_end_matches(": unwound");
                assert_eq!(open.pop().as_deref(), Some(name), "seed {seed}: {line}");
                assert_eq!(depth, open.len(), "seed {seed}: {line}");
                exits += 1;
            } else {
                assert!(call.ends_with("();"), "seed {seed}: {line}");
                assert_eq!(depth, open.len(), "seed {seed}: {line}");
                (entries, exits) = (entries + 1, exits + 1);
            }
        }
        let count = |kind: bool| did.values().flatten().filter(|(enter, ..)| *enter == kind).count();
        assert_eq!((entries, exits), (count(true), count(false)), "seed {seed}");
    }
}

#[test]
fn the_summary_adds_up() {
    for seed in SEEDS {
        let Scene { batches, did } = scene(seed);
        let value: Value = serde_json::from_str(&Form::SummaryJson.whole(&process(), batches)).unwrap();
        // Computes the same figures in another way: by the functions that each moment of a thread's time belongs to.
        let (mut total, mut own, mut calls) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut unfinished = 0;
        for did in did.values() {
            let ends = ends(did);
            unfinished += ends.iter().zip(did).filter(|(end, (enter, ..))| *enter && end.is_none()).count();
            for (at, (enter, function, _)) in did.iter().enumerate().filter(|(_, (enter, ..))| *enter) {
                assert!(enter);
                *calls.entry(*function).or_insert(0) += 1;
                let Some(end) = ends[at] else { continue };
                let took = did[end].2 - did[at].2;
                let within = (0..at).any(|outer| {
                    did[outer].0 && did[outer].1 == *function && ends[outer].is_none_or(|outer| outer > end)
                });
                // An outer call that has not ended yet has no time of its own, but still contains this call.
                *total.entry(*function).or_insert(0) += if within { 0 } else { took };
                let mut callees = 0;
                let mut inner = at + 1;
                while inner < end {
                    let last = ends[inner].unwrap();
                    callees += did[last].2 - did[inner].2;
                    inner = last + 1;
                }
                *own.entry(*function).or_insert(0) += took - callees;
            }
        }
        assert_eq!(value["unfinished"], unfinished, "seed {seed}");
        let rows = value["functions"].as_array().unwrap();
        assert_eq!(rows.len(), calls.len(), "seed {seed}");
        assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(row["total"].as_u64())), "seed {seed}");
        for row in rows {
            let function: u32 = row["function"].as_str().unwrap()[1..].parse().unwrap();
            assert_eq!(row["calls"], calls[&function], "seed {seed}");
            assert_eq!(row["total"].as_u64(), total.get(&function).copied(), "seed {seed}: {row}");
            assert_eq!(row["self"].as_u64(), own.get(&function).copied(), "seed {seed}: {row}");
        }
    }
}

/// Returns the index of the end of each entry of a thread, if there is one.
fn ends(did: &[(bool, u32, u64)]) -> Vec<Option<usize>> {
    let (mut ends, mut open) = (vec![None; did.len()], Vec::new());
    for (at, (enter, ..)) in did.iter().enumerate() {
        if *enter {
            open.push(at);
        } else if let Some(begin) = open.pop() {
            ends[begin] = Some(at);
        }
    }
    ends
}

#[test]
fn records_that_cannot_be_are_told_all_the_same() {
    // There are ends without a beginning, beginnings without an end inside other calls, and numbers that no batch has
    // named.
    for seed in 0..2000 {
        let random = &mut Random(seed);
        let number = |random: &mut Random| [0, 1, 2, u32::MAX][usize::try_from(random.below(4)).unwrap()];
        let record = |random: &mut Random| {
            let what = [
                ThreadAction::Enter,
                ThreadAction::Leave,
                ThreadAction::Unwound,
                ThreadAction::Call { parent: String::new() },
            ];
            let what = what[usize::try_from(random.below(4)).unwrap()].clone();
            let (thread, function) = (number(random), number(random));
            Record { thread, at: [random.below(1 << 30), u64::MAX][usize::from(random.below(9) == 0)], function, what }
        };
        let batch = |random: &mut Random| Batch {
            functions: vec![function("m", "f")],
            threads: vec![thread(7, "t")],
            records: (0..random.below(20)).map(|_| record(random)).collect(),
            missed: Missed { dropped: random.below(3), ..Missed::default() },
        };
        let batches = [batch(random), batch(random), batch(random)];
        let chrome: Value = serde_json::from_str(&Form::Chrome.whole(&process(), batches.clone())).unwrap();
        let count =
            |phase| chrome["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == phase).count();
        assert_eq!(count("B"), count("E"), "seed {seed}");
        let all = batches.iter().flat_map(|batch| &batch.records);
        let begun = all.filter(|record| matches!(record.what, ThreadAction::Enter | ThreadAction::Call { .. })).count();
        let lines =
            |form: Form| form.whole(&process(), batches.clone()).lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines(Form::Function), begun, "seed {seed}");
        assert!(lines(Form::Graph) >= begun, "seed {seed}");
        let summary: Value = serde_json::from_str(&Form::SummaryJson.whole(&process(), batches)).unwrap();
        let calls = summary["functions"].as_array().unwrap().iter().map(|row| row["calls"].as_u64().unwrap());
        assert_eq!(usize::try_from(calls.sum::<u64>()), Ok(begun), "seed {seed}");
    }
}
