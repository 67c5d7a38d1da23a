//! A thread in the replacement of a module's function keeps the module.

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use modload::error::sentence;
use modload::patch::Transition;
use modload::{Host, Module, UnloadError};

use crate::scene::{TAIL, WAYS, built, bytes, call, linked};

const TARGET: &str = r#"
#include <modload/module.h>
#include <modload/jump_label.h>
static __attribute__((used)) int count = 40;
static __attribute__((used)) DEFINE_STATIC_KEY_FALSE(feature);
static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(""); return n + 1; }
__attribute__((visibility("default"))) int ask(int n) { return answer(n); }
__attribute__((visibility("default"))) int switch_feature(int on)
{
	return on ? static_branch_enable(&feature) : static_branch_disable(&feature);
}
MODULE_LICENSE("GPL");
"#;

/// Sleeps in a replacement that refers to the target, or in a called function that refers to the target.
const PATCH: &str = r#"
long read(int, void *, unsigned long);
extern int count KLP_SYMBOL(target, count, 0);
DECLARE_STATIC_KEY_FALSE(feature) KLP_SYMBOL(target, feature, 0);
static int asleep;
static __attribute__((noinline)) int sleeps(int n)
{
	char byte;
	asleep++;
	read(n, &byte, 1);
	return count++ + (static_branch_unlikely(&feature) ? 100 : 0);
}
static int new_answer(int n) { return sleeps(n) + 1; }
__attribute__((visibility("default"))) int sleepers(int n) { (void)n; return asleep; }
"#;

const LIMIT: Duration = modload_tests::LONG;

/// A target with a thread in the replacement of its function. The thread continues when a byte is written.
struct Sleeper {
    patch: Module,
    wakes: PipeWriter,
    thread: JoinHandle<i32>,
    _end: PipeReader,
}

impl Sleeper {
    fn new(host: &Host, patch: Module) -> Sleeper {
        let (end, wakes) = std::io::pipe().unwrap();
        let target = host.load(&built("target", TARGET)).unwrap();
        // SAFETY: the function is an `int ask(int)`. Its module stays as long as a thread is in the function: that is
        // the subject of the test.
        let ask = unsafe { target.symbol::<extern "C" fn(i32) -> i32>("ask").unwrap() };
        let (ask, descriptor) = (*ask, end.as_raw_fd());
        let before = call(&patch, "sleepers", 0);
        let thread = thread::Builder::new().name("sleeper".into()).spawn(move || ask(descriptor)).unwrap();
        modload_tests::until("somebody sleeps", || call(&patch, "sleepers", 0) != before);
        Sleeper { patch, wakes, thread, _end: end }
    }

    fn wake(mut self) -> (Module, i32) {
        self.wakes.write_all(b"x").unwrap();
        (self.patch, self.thread.join().unwrap())
    }
}

fn host() -> Host {
    Host::builder().process_symbols().allow_forced_unload().build().unwrap()
}

pub(crate) fn who_is_in_a_replacement_keeps_its_target() {
    let host = host();
    let patch = host.load(&linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0])).unwrap();
    let untouched = bytes(&patch, &[".text"]);
    let sleeper = Sleeper::new(&host, patch);
    let refused = host.unload("target").unwrap_err();
    assert!(matches!(&refused, UnloadError::Occupied { threads, .. } if threads.len() == 1), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("\"sleeper\" is in ") && said.contains("sleeps+0x") && said.contains(" [patch]"), "{said}");
    let (patch, result) = sleeper.wake();
    assert_eq!(result, 41);
    host.unload("target").unwrap();
    assert!(bytes(&patch, &[".text"]) == untouched);
}

/// A forced unload removes the target in spite of the thread. Then the references to the target stay, and the next
/// target of this name has to wait.
pub(crate) fn what_could_not_be_taken_back_is_waited_for() {
    let host = host();
    let patch = host.load(&linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0])).unwrap();
    let untouched = bytes(&patch, &[".text"]);
    let sleeper = Sleeper::new(&host, patch);
    let held = host.module("target").unwrap();
    // A key that has been switched since, and stays so.
    call(&held, "switch_feature", 1);
    host.unload_by_force("target").unwrap();
    assert!(bytes(&sleeper.patch, &[".text"]) != untouched, "somebody is in it");
    let refused = host.load(&built("target", TARGET)).unwrap_err();
    let said = sentence(&refused);
    let why = "patch 'patch' still has relocations for an earlier load of object 'target', because a thread is inside";
    assert!(said.contains(why) && refused.error.errno() == 11, "{said}");
    // The module's memory stays as long as the module is held.
    let (patch, result) = sleeper.wake();
    assert_eq!(result, 141);
    drop(held);
    let target = host.load(&built("target", TARGET)).unwrap();
    assert!(bytes(&patch, &[".text"]) != untouched);
    target.unload().unwrap();
    assert!(bytes(&patch, &[".text"]) == untouched);
}

/// Functions that sleep and then use symbols of the target. The replacement is not on the stack of the sleeping thread,
/// because the replacement has jumped to such a function.
const TAIL_CALL: &str = "static int new_answer(int n) { return sleeps(n); }\n";
/// Sleeps in a part of the replacement that the compiler has put elsewhere, and which refers to nothing.
const COLD: &str = r#"
static __attribute__((noinline, cold)) int seldom(int n)
{
	char byte;
	asleep++;
	return read(n, &byte, 1);
}
static int new_answer(int n) { return n < 0 ? sleeps(n) : seldom(n) + 1000; }
"#;
const SLEEPS: &str = r#"
long read(int, void *, unsigned long);
extern int count KLP_SYMBOL(target, count, 0);
static int asleep;
static __attribute__((noinline)) int sleeps(int n)
{
	char byte;
	asleep++;
	read(n, &byte, 1);
	return count++;
}
__attribute__((visibility("default"))) int sleepers(int n) { (void)n; return asleep; }
"#;

fn wait(what: impl Fn() -> bool) {
    modload_tests::until("it is so", what);
}

/// A thread in a function that refers to the target keeps the patch enabled, in whichever way the thread got there.
pub(crate) fn who_is_in_what_refers_to_a_target_keeps_its_patch_enabled() {
    for (replacement, expected, frame) in [(TAIL_CALL, 40, "sleeps+0x"), (COLD, 1001, "new_answer.cold+0x")] {
        let host = host();
        let text = format!("{SLEEPS}{replacement}{TAIL}");
        let patch = host.load(&linked("patch", &text, WAYS[0])).unwrap();
        let untouched = bytes(&patch, &[".text"]);
        let sleeper = Sleeper::new(&host, patch);
        host.disable_patch("patch").unwrap();
        let blocking = host.blocking("patch").unwrap();
        let [blocked] = &blocking[..] else { panic!("{frame}: {blocking:?}") };
        assert!(blocked.inside.as_ref().is_some_and(|inside| inside.starts_with(frame)), "{blocked:?}");
        assert!(bytes(&sleeper.patch, &[".text"]) != untouched, "somebody is in it");
        let (patch, result) = sleeper.wake();
        assert_eq!(result, expected);
        wait(|| host.patches().unwrap().is_empty());
        assert!(bytes(&patch, &[".text"]) == untouched, "taken back");
    }
}

/// A patch is disabled by force while a thread in the patch still needs the target.
pub(crate) fn who_is_in_what_was_disabled_by_force_keeps_its_target() {
    for transition in [Transition::Anywhere, Transition::CheckpointsOnly] {
        let host = Host::builder().process_symbols().transition(transition).build().unwrap();
        let patch = host.load(&linked("patch", &format!("{SLEEPS}{TAIL_CALL}{TAIL}"), WAYS[0])).unwrap();
        let sleeper = Sleeper::new(&host, patch);
        host.disable_patch("patch").unwrap();
        host.force_patch("patch").unwrap();
        assert!(host.patches().unwrap().is_empty());
        let target = host.module("target").unwrap();
        assert_eq!(call(&target, "ask", 3), 4);
        drop(target);
        let refused = host.unload("target").unwrap_err().to_string();
        assert!(refused.contains("\"sleeper\" is in ") && refused.contains("sleeps+0x"), "{refused}");
        let (patch, result) = sleeper.wake();
        assert_eq!(result, 40);
        // The references in a patch's module go with the module. The target is unloaded first here, and last in the
        // other mode.
        if transition == Transition::Anywhere {
            host.unload("target").unwrap();
        }
        drop(patch);
        host.unload_within("patch", LIMIT).unwrap();
        if transition == Transition::CheckpointsOnly {
            host.unload("target").unwrap();
        }
    }
}
