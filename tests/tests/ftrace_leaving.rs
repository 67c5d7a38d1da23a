//! Functions that end otherwise than by their return, and stacks that change in the middle, while functions are traced
//! in every way.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use modload::trace::Batch;
use modload::trace::{Call, Filter, Mode, TraceOptions};
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Recorded, Watch, case, watched};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(longjmp_ten_thousand_times),
        case!(longjmp_into_a_traced_function),
        case!(longjmp_from_far_below),
        case!(threads_are_cancelled),
        case!(threads_exit),
        case!(what_ending_threads_call_is_counted),
        case!(coroutines_switch_in_the_middle),
        case!(a_hundred_thousand_signals).within_seconds(400),
        case!(a_hundred_thousand_signals_on_another_stack).within_seconds(400),
        case!(an_alternate_stack_within_the_threads_own),
        case!(a_fork_in_the_middle),
        case!(exceptions_pass_and_are_caught).needing("g++"),
        case!(panics_pass_and_are_caught).needing("g++"),
        case!(what_returns_twice_is_not_returned_to),
        case!(a_system_call_goes_on_or_is_interrupted_as_ever).within_seconds(180),
    ])
}

/// The module of `leaving.c` or of `throwing.cpp`, in a host.
struct Leaving {
    host: Host,
    module: Module,
}

impl Leaving {
    fn new() -> Leaving {
        Leaving::of(Language::C, include_str!("../traced/leaving.c"))
    }

    fn throwing() -> Leaving {
        // SAFETY: the C++ runtime, whose constructors do no harm.
        let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!runtime.is_null(), "the C++ runtime is there if its compiler is");
        Leaving::of(Language::Cxx, include_str!("../traced/throwing.cpp"))
    }

    fn of(language: Language, text: &str) -> Leaving {
        let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5", "-pthread"];
        let object = object_from_text("leaving", language, text, Compiler::Cc, &flags).unwrap();
        // SAFETY: the texts are ours.
        let image = unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("leaving");
        let host = Host::builder().process_symbols().build().unwrap();
        let module = host.load(&image).unwrap();
        Leaving { host, module }
    }

    fn call(&self, name: &str, arguments: &[u64]) -> i64 {
        // SAFETY: those of `leaving.c` that are called take and return integers.
        unsafe { self.module.call(name, arguments) }.unwrap().cast_signed()
    }

    /// Runs a check in every way. Passes the recordings to `recorded`.
    fn check(&self, name: &str, expected: &[(&str, u64)], mut recorded: impl FnMut(Watch, Recorded)) {
        let expected: BTreeMap<String, u64> =
            expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        for watch in Watch::ALL {
            let seen =
                watched(&self.host, watch, "leaving:*", || assert_eq!(self.call(name, &[]), 0, "{name} {watch:?}"));
            for heard in &seen.heard {
                assert_eq!(*heard, expected, "{name} {watch:?}");
            }
            let Some(seen) = seen.recorded else { continue };
            if watch.mode() == Some(Mode::Calls) {
                assert_eq!((&seen.calls, seen.missed.total()), (&expected, 0), "{name} {watch:?}");
            }
            recorded(watch, seen);
        }
    }
}

fn counts(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// All lines of a graph that was not missing anything have ends: entries are as many as ends.
fn all_end(name: &str, watch: Watch, recorded: &Recorded) {
    for lines in &recorded.lines {
        let entries = lines.iter().filter(|line| line.ends_with('{')).count();
        assert_eq!(entries * 2, lines.len(), "{name} {watch:?}: {:?}", &lines[lines.len().saturating_sub(20)..]);
    }
}

fn jumps(name: &str, expected: &[(&str, u64)], first: &[&str]) {
    let leaving = Leaving::new();
    leaving.check(name, expected, |watch, recorded| {
        if watch.mode() != Some(Mode::Graph) {
            return;
        }
        assert_eq!((&recorded.calls, recorded.missed.total()), (&counts(expected), 0), "{name} {watch:?}");
        assert_eq!(recorded.unwound, counts(&[("deep", 50_000)]), "{name} {watch:?}");
        assert_eq!(recorded.lines[0][..first.len()], *first);
        all_end(name, watch, &recorded);
    });
}

const DEEP: [&str; 5] = ["deep {"; 5];
const LEFT: [&str; 5] = ["~ deep"; 5];

fn longjmp_ten_thousand_times() {
    // The first function that is called at the same place finds the old records gone.
    let first = [&DEEP[..], &LEFT, &["leaf {", "} leaf"]].concat();
    jumps("check_longjmp", &[("deep", 50_000), ("leaf", 10_000)], &first);
}

fn longjmp_into_a_traced_function() {
    let first = [&["catcher {"][..], &DEEP, &LEFT, &["} catcher"]].concat();
    jumps("check_longjmp_into_traced", &[("deep", 50_000), ("catcher", 10_000)], &first);
}

fn longjmp_from_far_below() {
    let first = [&["shallow_catcher {"][..], &DEEP, &LEFT, &["leaf {", "} leaf", "} shallow_catcher"]].concat();
    jumps("check_longjmp_from_far_below", &[("deep", 50_000), ("leaf", 10_000), ("shallow_catcher", 10_000)], &first);
}

fn threads_are_cancelled() {
    let leaving = Leaving::new();
    let expected = [("start", 50), ("waits", 50), ("waits_below", 50)];
    leaving.check("check_cancel", &expected, |watch, recorded| {
        if watch.mode() == Some(Mode::Graph) {
            assert_eq!((&recorded.calls, &recorded.unwound), (&counts(&expected), &counts(&expected)));
            let lines = ["start {", "waits_below {", "waits {", "~ waits", "~ waits_below", "~ start"];
            assert_eq!(recorded.lines, vec![lines; 50], "{watch:?}");
            assert_eq!(recorded.missed.total(), 0);
        }
    });
}

fn threads_exit() {
    let leaving = Leaving::new();
    let expected = [("exits_below", 50), ("leaf", 50), ("start_and_exit", 50), ("start_and_return", 50)];
    leaving.check("check_exit", &expected, |watch, recorded| {
        if watch.mode() == Some(Mode::Graph) {
            assert_eq!((&recorded.calls, recorded.missed.total()), (&counts(&expected), 0));
            let exits = vec!["start_and_exit {", "exits_below {", "~ exits_below", "~ start_and_exit"];
            let returns = vec!["start_and_return {", "leaf {", "} leaf", "} start_and_return"];
            assert_eq!(recorded.lines.len(), 100);
            for (number, lines) in recorded.lines.iter().enumerate() {
                assert_eq!(lines, if number % 2 == 0 { &exits } else { &returns }, "{watch:?}");
            }
        }
    });
}

fn what_ending_threads_call_is_counted() {
    let leaving = Leaving::new();
    for watch in Watch::ALL {
        let seen = watched(&leaving.host, watch, "leaving:*", || assert_eq!(leaving.call("check_destructors", &[]), 0));
        assert!(seen.heard.iter().all(|heard| *heard == counts(&[("leaf", 20)])), "{watch:?}");
        let Some(recorded) = seen.recorded else { continue };
        assert_eq!(recorded.calls, counts(&[("leaf", 10)]), "{watch:?}");
        assert_eq!((recorded.missed.elsewhere, recorded.missed.total()), (10, 10), "{watch:?}");
    }
}

fn coroutines_switch_in_the_middle() {
    let leaving = Leaving::new();
    // The first calls of the coroutines, and 2,997 times on in the middle.
    let expected = [("coroutine", 3), ("leaf", 2997 + 3000), ("resumes", 3000), ("yields", 3000)];
    leaving.check("check_coroutines", &expected, |watch, recorded| {
        if watch.mode() == Some(Mode::Graph) {
            assert_eq!(recorded.calls, counts(&[("leaf", 3000), ("resumes", 3000)]), "{watch:?}");
            assert_eq!((recorded.missed.elsewhere, recorded.missed.total()), (6000, 6000), "{watch:?}");
            assert_eq!(recorded.unwound, counts(&[]));
        }
    });
}

/// Two threads that call functions, 25,000 signals to them in each of four ways, and handlers that call functions too.
/// Each call is recorded once, or counted as missed once.
fn interrupted(name: &str, is_elsewhere: bool) {
    let leaving = Leaving::new();
    for watch in [Watch::Tracer, Watch::Calls, Watch::Graph, Watch::GraphAndTracer] {
        let heard = Arc::new(AtomicU64::new(0));
        let tracer = {
            let heard = heard.clone();
            move |_: &Call<'_>| {
                heard.fetch_add(1, Ordering::Relaxed);
            }
        };
        let traced = matches!(watch, Watch::Tracer | Watch::GraphAndTracer);
        let tracing = traced.then(|| leaving.host.trace("leaving:*".parse().unwrap(), tracer).unwrap());
        let options = |mode| TraceOptions::new(mode).pattern("leaving:*").unwrap().buffer(64 << 20);
        let mut trace = watch.mode().map(|mode| leaving.host.trace_functions(&options(mode)).unwrap());
        let mut all = Batch::default();
        thread::scope(|scope| {
            let run = scope.spawn(|| assert_eq!(leaving.call(name, &[]), 0));
            // Another thread reads the rings during the run, and still the rings are too small.
            while !run.is_finished() {
                trace.iter_mut().for_each(|trace| add(&mut all, trace.drain()));
                thread::sleep(Duration::from_millis(5));
            }
        });
        if let Some(trace) = trace {
            add(&mut all, trace.finish());
        }
        drop(tracing);
        let (made, ran) = (leaving.call("calls_made", &[]), leaving.call("handlers_run", &[]));
        println!("{watch:?}: {made} calls, {ran} handlers, {:?}", all.missed);
        if traced {
            // Calls by handlers that ran while their thread was in the tracer are not passed to the tracer.
            let heard = heard.load(Ordering::Relaxed).cast_signed();
            assert!((made - 2 * ran..=made).contains(&heard), "{watch:?}: {heard} of {made}, {ran} handlers");
        }
        let Some(mode) = watch.mode() else { continue };
        let recorded = Recorded::of(&all);
        let missed = recorded.missed;
        let calls = recorded.calls.values().sum::<u64>() + missed.total();
        assert_eq!(calls.cast_signed(), made, "{watch:?} {missed:?}, {ran} handlers");
        assert_eq!((missed.deep, recorded.unwound.len()), (0, 0), "{watch:?}");
        if mode == Mode::Graph {
            all_end(name, watch, &recorded);
            assert_eq!(missed.elsewhere != 0, is_elsewhere, "{watch:?} {missed:?}");
        }
    }
}

fn add(all: &mut Batch, more: Batch) {
    all.functions.extend(more.functions);
    all.threads.extend(more.threads);
    all.records.extend(more.records);
    all.missed = more.missed;
}

fn a_hundred_thousand_signals() {
    interrupted("check_signals", false);
}

fn a_hundred_thousand_signals_on_another_stack() {
    interrupted("check_signals_elsewhere", true);
}

fn an_alternate_stack_within_the_threads_own() {
    let leaving = Leaving::new();
    let expected = [("in_handler", 1000), ("interrupted", 1), ("interrupted_above", 1), ("leaf", 2000)];
    leaving.check("check_own_alternate_stack", &expected, |watch, recorded| {
        if watch.mode() == Some(Mode::Graph) {
            let own = [("interrupted", 1), ("interrupted_above", 1), ("leaf", 1000)];
            assert_eq!((&recorded.calls, recorded.missed.elsewhere), (&counts(&own), 2000), "{watch:?}");
            assert_eq!(recorded.unwound, counts(&[]));
        }
    });
}

fn a_fork_in_the_middle() {
    let leaving = Leaving::new();
    let expected = [("forks", 1), ("forks_below", 1), ("leaf", 1)];
    leaving.check("check_fork", &expected, |watch, recorded| {
        if watch.mode() == Some(Mode::Graph) {
            let lines = ["forks_below {", "forks {", "} forks", "leaf {", "} leaf", "} forks_below"];
            assert_eq!((&recorded.lines, recorded.missed.total()), (&vec![lines.map(String::from).to_vec()], 0));
        }
    });
    // The child starts a new trace, and the parent's records stay with the parent.
    let parents = leaving.host.trace_functions(&TraceOptions::new(Mode::Graph)).unwrap();
    modload_tests::in_fork(|| {
        drop(parents);
        let seen =
            watched(&leaving.host, Watch::GraphAndTracer, "leaving:*", || assert_eq!(leaving.call("leaf", &[1]), 2));
        assert_eq!((&seen.heard[0], &seen.recorded.unwrap().calls), (&counts(&[("leaf", 1)]), &counts(&[("leaf", 1)])));
    })
    .well();
}

fn exceptions_pass_and_are_caught() {
    let leaving = Leaving::throwing();
    let expected =
        [("again", 100), ("cleans", 400), ("first", 400), ("second", 400), ("third", 400), ("traced_catcher", 200)];
    leaving.check("check_exceptions", &expected, |watch, recorded| {
        if watch.mode() != Some(Mode::Graph) {
            return;
        }
        assert_eq!((&recorded.calls, recorded.missed.total()), (&counts(&expected), 0), "{watch:?}");
        let unwound = counts(&[("again", 100), ("first", 300), ("second", 300), ("third", 300)]);
        assert_eq!(recorded.unwound, unwound, "{watch:?}");
        let into = ["first {", "second {", "third {"];
        let thrown = ["~ third", "cleans {", "} cleans", "~ second", "~ first"];
        let returned = ["} third", "cleans {", "} cleans", "} second", "} first"];
        let round = [
            &["traced_catcher {"][..],
            &into,
            &thrown,
            &["} traced_catcher"],
            &into,
            &thrown,
            &["again {"],
            &into,
            &thrown,
            &["~ again", "traced_catcher {"],
            &into,
            &returned,
            &["} traced_catcher"],
        ];
        assert_eq!(recorded.lines[0], round.concat().repeat(100), "{watch:?}");
    });
}

/// The function that a module calls back.
extern "C-unwind" fn back(argument: i64) -> i64 {
    assert!(argument % 2 == 0, "odd");
    argument + 1
}

fn panics_pass_and_are_caught() {
    let leaving = Leaving::throwing();
    std::panic::set_hook(Box::new(|_| ()));
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let address = u64::try_from((back as *const ()).expose_provenance()).unwrap();
    let expected = counts(&[("calls_back", 100), ("calls_back_below", 100)]);
    // SAFETY: the type of the function.
    let below = unsafe { leaving.module.symbol::<extern "C-unwind" fn(u64, i64) -> i64>("calls_back_below") }.unwrap();
    for watch in Watch::ALL {
        let seen = watched(&leaving.host, watch, "leaving:*", || {
            for argument in 0..100 {
                let done = catch_unwind(|| below(address, argument)).ok();
                assert_eq!(done, (argument % 2 == 0).then_some(argument + 1), "{watch:?}");
            }
        });
        assert!(seen.heard.iter().all(|heard| *heard == expected), "{watch:?}");
        let Some(recorded) = seen.recorded else { continue };
        assert_eq!((&recorded.calls, recorded.missed.total()), (&expected, 0), "{watch:?}");
        if watch.mode() == Some(Mode::Graph) {
            assert_eq!(recorded.unwound, counts(&[("calls_back", 50), ("calls_back_below", 50)]));
            all_end("panics", watch, &recorded);
        }
    }
}

/// The function's calls are seen in every way except one.
fn what_returns_twice_is_not_returned_to() {
    let leaving = Leaving::new();
    let reason = |name: &str| leaving.host.traceable().into_iter().find(|one| one.function.name == name).unwrap();
    let refused = reason("savectx");
    assert_eq!(refused.why_not, None);
    assert_eq!(refused.why_no_returns, Some("it may return more than once, or to another stack"));
    assert_eq!(reason("leaf").why_no_returns, None);
    let expected = [("comes_back", 1), ("leaf", 3), ("savectx", 1)];
    leaving.check("check_twice", &expected, |watch, recorded| {
        if watch.mode() == Some(Mode::Graph) {
            let others = [("comes_back", 1), ("leaf", 3)];
            assert_eq!((&recorded.calls, recorded.missed.total()), (&counts(&others), 0), "{watch:?}");
        }
    });
}

fn a_system_call_goes_on_or_is_interrupted_as_ever() {
    const EINTR: i64 = 4;
    let leaving = Leaving::new();
    for watch in Watch::ALL {
        // Tracing starts during the read and then ends; or tracing starts before the read and ends during the read.
        for by_signal in [0, 1] {
            let expected = if by_signal == 1 { -EINTR } else { 11 };
            assert_eq!(leaving.call("begin_read", &[]), 0);
            for _ in 0..20 {
                drop(watched(&leaving.host, watch, "leaving:*", || ()));
            }
            assert_eq!(leaving.call("end_read", &[by_signal]), expected, "{watch:?}");
            let seen = watched(&leaving.host, watch, "leaving:*", || {
                assert_eq!(leaving.call("begin_read", &[]), 0);
                for _ in 0..20 {
                    drop(leaving.host.trace("leaving:leaf".parse::<Filter>().unwrap(), |_: &Call<'_>| {}).unwrap());
                }
                assert_eq!(leaving.call("end_read", &[by_signal]), expected, "{watch:?}");
            });
            assert!(seen.heard.iter().all(|heard| *heard == counts(&[("reads", 1)])), "{watch:?}");
            assert!(seen.recorded.is_none_or(|recorded| recorded.calls == counts(&[("reads", 1)])), "{watch:?}");
        }
    }
}
