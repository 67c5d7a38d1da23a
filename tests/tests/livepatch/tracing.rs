//! Patches and tracers of the same functions, and the order in which the two are notified of modules.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use modload::timeline::EventKind;
use modload::trace::{Call, Filter, Mode, TraceOptions};
use modload::{Image, State};
use modload_fixtures::{Compiler, Fixture};

use crate::scene::{NEW, TARGET, built, call, func, host, patch, settled, waiting};

pub(crate) fn a_patched_function_can_be_traced() {
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
    // A redirecting tracer is refused while the function is patched.
    struct Nowhere;
    impl modload::trace::Redirect for Nowhere {
        fn redirect(&self, _: &Call<'_>) -> Option<modload::text::Addr> {
            None
        }
    }
    host.disable_patch("second").unwrap();
    settled(&host);
    // SAFETY: the tracer redirects nothing.
    let redirecting = host.redirect(filter(), unsafe { modload::trace::Redirecting::new(Nowhere) }).unwrap();
    let refused = host.enable_patch("third", patch("target", vec![func("one", &new, "new_one")]), None).unwrap_err();
    assert!(format!("{refused:?}").contains("Redirected"), "{refused:?}");
    drop(redirecting);
    calls(2, 0);
}

/// The events of `greet` and its patch, for both load orders: from the timeline, the notifications and lines of ftrace
/// and live patching, and the runs of module code.
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

pub(crate) fn seed_003_ftrace_klp_klp_ftrace_in_both_load_orders() {
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
