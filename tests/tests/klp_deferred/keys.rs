//! A static key and a static call of a module that is not there yet: Linux refuses such patches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use modload_tests::in_fork;

use crate::scene::{TAIL, WAYS, built, bytes, call, host, linked};

const TARGET: &str = r#"
#include <modload/module.h>
#include <modload/jump_label.h>
#include <modload/static_call.h>
static __attribute__((used)) DEFINE_STATIC_KEY_FALSE(feature);
static __attribute__((used)) DEFINE_STATIC_KEY_TRUE(usual);
static int plus_one(int n) { return n + 1; }
static int plus_two(int n) { return n + 2; }
DEFINE_STATIC_CALL(op, plus_one);
static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(""); return n; }
__attribute__((visibility("default"))) int ask(int n) { return answer(n); }
__attribute__((visibility("default"))) int switch_feature(int on)
{
	return on ? static_branch_enable(&feature) : static_branch_disable(&feature);
}
__attribute__((visibility("default"))) int switch_usual(int on)
{
	return on ? static_branch_enable(&usual) : static_branch_disable(&usual);
}
__attribute__((visibility("default"))) int switch_op(int two)
{
	static_call_update(op, two ? plus_two : plus_one);
	return 0;
}
MODULE_LICENSE("GPL");
"#;

pub(crate) const PATCH: &str = r#"
DECLARE_STATIC_KEY_FALSE(feature) KLP_SYMBOL(target, feature, 0);
DECLARE_STATIC_KEY_TRUE(usual) KLP_SYMBOL(target, usual, 0);
int plus_one(int n);
DECLARE_STATIC_CALL(op, plus_one) KLP_SYMBOL(target, __SCT__op, 0);
static int new_answer(int n)
{
	int sum = 10 * static_call(op)(n);
	if (static_branch_unlikely(&feature))
		sum += 1000;
	if (static_branch_likely(&usual))
		sum += 20000;
	if (static_branch_likely(&feature))
		sum += 300000;
	return sum;
}
"#;

fn expected(n: u64, feature: bool, usual: bool, two: bool) -> u64 {
    let op = n + if two { 2 } else { 1 };
    10 * op + if feature { 301_000 } else { 0 } + if usual { 20_000 } else { 0 }
}

pub(crate) fn static_keys_and_calls_of_an_absent_module() {
    for way in WAYS {
        let host = host();
        let patch = host
            .load(&linked("patch", &format!("{PATCH}{TAIL}"), way))
            .unwrap_or_else(|error| panic!("{way:?}: {error}"));
        let untouched = bytes(&patch, &["."]);
        for round in 0..4_u64 {
            let target = host.load(&built("target", TARGET)).unwrap_or_else(|error| panic!("{way:?}: {error}"));
            assert_eq!(call(&target, "ask", 3), expected(3, false, true, false), "{way:?}");
            for state in (0..8).chain([round]) {
                let (feature, usual, two) = (state & 1, state >> 1 & 1, state >> 2 & 1);
                call(&target, "switch_feature", feature);
                call(&target, "switch_usual", usual);
                call(&target, "switch_op", two);
                assert_eq!(
                    call(&target, "ask", 5),
                    expected(5, feature == 1, usual == 1, two == 1),
                    "{way:?}, {state}"
                );
            }
            // The target is unloaded while its keys have this state.
            target.unload().unwrap();
            assert!(bytes(&patch, &["."]) == untouched, "{way:?}: taken back");
        }
    }
}

/// Patches are loaded and unloaded while other threads call their target and switch its keys. Every result is an
/// allowed one, and nothing is left.
pub(crate) fn patches_come_and_go_while_keys_are_switched() {
    const CALLERS: usize = 3;
    const CYCLES: usize = 100;
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let module = linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0]);
    let cycle = || {
        let patch = host.load(&module).unwrap();
        host.disable_patch("patch").unwrap();
        drop(patch);
        host.unload_within("patch", modload_tests::LONG).unwrap();
    };
    let over = AtomicBool::new(false);
    let calls = AtomicU64::new(0);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut patched = 0_u64;
                    while !over.load(Ordering::Relaxed) {
                        let result = call(&target, "ask", 5);
                        // A key may be switched between its two branches.
                        let branches = [0, 1000, 300_000, 301_000];
                        let new = branches.iter().flat_map(|sum| [60, 70].map(|op| 20_000 + sum + op));
                        assert!(result == 5 || new.into_iter().any(|sum| sum == result), "{result}");
                        patched += u64::from(result != 5);
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                    patched
                })
            })
            .collect();
        let switcher = scope.spawn(|| {
            let mut switched = 0;
            while !over.load(Ordering::Relaxed) {
                call(&target, "switch_feature", switched & 1);
                call(&target, "switch_op", switched >> 1 & 1);
                switched += 1;
            }
            switched
        });
        (0..CYCLES / 10).for_each(|_| cycle());
        let before = host.memory().map(|stripe| stripe.used);
        (0..CYCLES).for_each(|_| cycle());
        assert_eq!(host.memory().map(|stripe| stripe.used), before, "nothing is left");
        over.store(true, Ordering::Relaxed);
        let patched: u64 = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
        let switched = switcher.join().unwrap();
        println!("{} calls, {patched} of the patch, {switched} switches", calls.load(Ordering::Relaxed));
        assert!(patched != 0 && switched != 0);
    });
}

/// Two threads load and unload a target and a patch of the target, without coordination; a third thread forks.
pub(crate) fn targets_and_patches_come_and_go_at_once() {
    const CYCLES: usize = 200;
    let host = host();
    let (target, patch) = (built("target", TARGET), linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0]));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let forker = scope.spawn(|| {
            let mut forks = 0;
            while !over.load(Ordering::Relaxed) {
                // Whatever the other threads were doing, the patch is whole in the child, and can be taken back.
                let child = in_fork(|| assert!(host.disable_patches(modload_tests::LONG).unwrap().is_empty()));
                child.well();
                thread::sleep(Duration::from_millis(1));
                forks += 1;
            }
            forks
        });
        let targets = scope.spawn(|| {
            let mut patched = 0;
            for cycle in 0..CYCLES {
                let there = host.load(&target).unwrap();
                call(&there, "switch_feature", 1);
                let result = call(&there, "ask", 3);
                assert!(result == 3 || result == 321_040, "{cycle}: {result}");
                patched += usize::from(result != 3);
                drop(there);
                host.unload_within("target", modload_tests::LONG).unwrap();
            }
            patched
        });
        let patches = scope.spawn(|| {
            for _ in 0..CYCLES {
                let there = host.load(&patch).unwrap();
                drop(there);
                host.disable_patches(modload_tests::LONG).unwrap();
                host.unload_within("patch", modload_tests::LONG).unwrap();
            }
        });
        patches.join().unwrap();
        let patched = targets.join().unwrap();
        over.store(true, Ordering::Relaxed);
        println!("{patched} of {CYCLES} calls were the patch's, {} forks", forker.join().unwrap());
    });
    assert!(host.modules().is_empty() && host.patches().unwrap().is_empty());
}
