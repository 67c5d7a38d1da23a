//! A patch with thousands of places that wait.

use std::fmt::Write;
use std::time::Duration;

use crate::scene::{TAIL, WAYS, built, bytes, call, host, linked};
use modload_tests::cpu_time;

const FUNCTIONS: u64 = 2000;

/// Processor time. Work of 60 ms takes seconds if each place is compared with each other place.
const LIMIT: Duration = Duration::from_secs(1);

pub(crate) fn thousands_of_places_that_wait() {
    let mut target = "#include <modload/module.h>\n#include <modload/jump_label.h>\nMODULE_LICENSE(\"GPL\");\n\
        static __attribute__((used)) DEFINE_STATIC_KEY_FALSE(feature);\n\
        static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(\"\"); return n; }\n\
        __attribute__((visibility(\"default\"))) int ask(int n) { return answer(n); }\n\
        __attribute__((visibility(\"default\"))) int enable(int n) { return n + static_branch_enable(&feature); }\n"
        .to_owned();
    let mut patch = "DECLARE_STATIC_KEY_FALSE(feature) KLP_SYMBOL(target, feature, 0);\n".to_owned();
    let mut calls = String::new();
    for number in 0..FUNCTIONS {
        writeln!(
            target,
            "static __attribute__((noinline, used)) int old{number}(int n) {{ __asm__ volatile(\"\"); return n + 1; }}"
        )
        .unwrap();
        writeln!(
            patch,
            "int old{number}(int n) KLP_SYMBOL(target, old{number}, 0);\n\
             static __attribute__((noinline)) int new{number}(int n)\n\
             {{ n = old{number}(n); if (static_branch_unlikely(&feature)) n++; return old{number}(n) - 1; }}"
        )
        .unwrap();
        write!(calls, " n = new{number}(n);").unwrap();
    }
    let text = format!("{patch}static int new_answer(int n) {{{calls} return n; }}{TAIL}");
    let (target, host) = (built("target", &target), host());
    let patch = host.load(&linked("patch", &text, WAYS[0])).unwrap();
    let untouched = bytes(&patch, &["."]);
    for _ in 0..2 {
        let begun = cpu_time();
        let there = host.load(&target).unwrap();
        let loaded = cpu_time() - begun;
        assert_eq!(call(&there, "ask", 3), 3 + FUNCTIONS);
        call(&there, "enable", 0);
        assert_eq!(call(&there, "ask", 3), 3 + 2 * FUNCTIONS);
        drop(there);
        let begun = cpu_time();
        host.unload("target").unwrap();
        let unloaded = cpu_time() - begun;
        println!("written in {loaded:?}, taken back in {unloaded:?}");
        assert!(loaded < LIMIT && unloaded < LIMIT, "{loaded:?}, {unloaded:?}");
        assert!(bytes(&patch, &["."]) == untouched);
    }
}
