//! Functions of every kind are called while they are traced in every way: each has the same effect as without tracing,
//! and each call is seen once.

use std::collections::BTreeMap;
use std::process::ExitCode;

use modload::trace::Mode;
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Seen, Watch, case, watched};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(every_kind_of_call_in_every_way).needing("gcc"),
        case!(every_kind_of_call_through_calls_of_fentry).needing("gcc"),
        case!(deeper_than_the_return_stack).needing("gcc"),
        case!(arguments_in_wide_vectors).needing("gcc"),
    ])
}

fn built(name: &str, text: &str, flags: &[&str]) -> Image<'static> {
    let object = object_from_text(name, Language::C, text, Compiler::Gcc, flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

const PATCHABLE: &[&str] = &["-O2", "-fPIC", "-fpatchable-function-entry=5"];
const FENTRY: &[&str] = &["-O2", "-fPIC", "-pg", "-mfentry", "-mrecord-mcount"];

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

/// Runs a check of a module, which returns 0 or a line.
fn check(module: &Module, name: &str) {
    // SAFETY: checks are `long f(void)`.
    assert_eq!(unsafe { module.call(name, &[]) }.unwrap(), 0, "{name}");
}

/// Requires that every tracer and every recording sees every call once.
fn seen_once(watch: Watch, what: &str, seen: &Seen, expected: &[(&str, u64)]) {
    let expected: BTreeMap<String, u64> = expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    for heard in &seen.heard {
        assert_eq!(*heard, expected, "{what} {watch:?}");
    }
    if let Some(recorded) = &seen.recorded {
        assert_eq!(recorded.calls, expected, "{what} {watch:?}");
        assert_eq!((recorded.missed.total(), recorded.unwound.len()), (0, 0), "{what} {watch:?}");
        let events = if watch.mode() == Some(Mode::Graph) { 2 } else { 1 };
        let lines: usize = recorded.lines.iter().map(Vec::len).sum();
        assert_eq!(u64::try_from(lines).unwrap(), expected.values().sum::<u64>() * events, "each has an end");
    }
}

/// Checks of `calls.c`, and the functions that they call.
const CHECKS: [(&str, &[(&str, u64)]); 9] = [
    ("check_recursion", &[("fib", 1973)]),
    ("check_tail", &[("is_even", 102), ("is_odd", 101)]),
    ("check_arguments", &[("many", 1)]),
    ("check_varargs", &[("sum", 2), ("vectors", 9)]),
    (
        "check_returns",
        &[
            ("pair_of", 1),
            ("doubles_of", 1),
            ("mixed_of", 1),
            ("wide_of", 1),
            ("long_double_of", 1),
            ("complex_of", 1),
            ("int128_of", 1),
        ],
    ),
    ("check_static_chain", &[("check_static_chain", 1), ("inside.0", 2)]),
    ("check_misaligned", &[("aligned_or_not", 64)]),
    ("check_red_zone", &[("red_zone", 1)]),
    (
        "check_across",
        &[("across_line_1", 1), ("across_line_4", 1), ("across_page_1", 1), ("across_page_2", 1), ("across_page_4", 1)],
    ),
];

const CALLS: &str = include_str!("../traced/calls.c");

fn every_kind_of(flags: &[&str], untraced: &str) {
    let host = host();
    let module = host.load(&built("calls", CALLS, flags)).unwrap();
    for (name, align, behind) in [
        ("across_line_1", 64, 60),
        ("across_line_4", 64, 63),
        ("across_page_1", 4096, 4092),
        ("across_page_4", 4096, 4095),
    ] {
        assert_eq!(module.symbol_info(name).unwrap().addr.get() % align, behind, "{name}");
    }
    for (name, expected) in CHECKS {
        let expected: Vec<_> = expected.iter().copied().filter(|(function, _)| *function != untraced).collect();
        for watch in Watch::ALL {
            let seen = watched(&host, watch, "calls:*", || check(&module, name));
            seen_once(watch, name, &seen, &expected);
        }
        check(&module, name);
    }
}

fn every_kind_of_call_in_every_way() {
    every_kind_of(PATCHABLE, "");
}

/// Functions written in assembler have NOPs nevertheless. Nested functions have none, because gcc does not profile them.
fn every_kind_of_call_through_calls_of_fentry() {
    every_kind_of(FENTRY, "inside.0");
}

fn deeper_than_the_return_stack() {
    let host = host();
    let module = host.load(&built("calls", CALLS, PATCHABLE)).unwrap();
    for (name, calls) in [("check_deep_tail", 5001 + 5002), ("check_deep", 3000)] {
        for watch in Watch::ALL {
            let seen = watched(&host, watch, "calls:*", || check(&module, name));
            for heard in &seen.heard {
                assert_eq!(heard.values().sum::<u64>(), calls, "{name} {watch:?}");
            }
            let Some(recorded) = seen.recorded else { continue };
            let made = recorded.calls.values().sum::<u64>();
            assert_eq!(made + recorded.missed.deep, calls, "{name} {watch:?}");
            assert_eq!(recorded.missed.total(), recorded.missed.deep);
            assert_eq!(recorded.missed.deep != 0, watch.mode() == Some(Mode::Graph), "{name} {watch:?}");
        }
    }
}

fn arguments_in_wide_vectors() {
    for (feature, is_there, width, flag) in [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2"), 32, "-mavx2"),
        ("AVX-512", std::arch::is_x86_feature_detected!("avx512f"), 64, "-mavx512f"),
    ] {
        if !is_there {
            eprintln!("SKIPPED arguments of {width} bytes: this processor has no {feature}");
            continue;
        }
        let host = host();
        let width = format!("-DWIDTH={width}");
        let flags = [PATCHABLE, &[flag, &width]].concat();
        let module = host.load(&built("vectors", include_str!("../traced/vectors.c"), &flags)).unwrap();
        for watch in Watch::ALL {
            let seen = watched(&host, watch, "vectors:*", || check(&module, "check_vectors"));
            seen_once(watch, feature, &seen, &[("mix", 1), ("pass", 1)]);
        }
    }
}
