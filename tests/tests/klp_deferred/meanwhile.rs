//! Targets are loaded and unloaded while a patch is in transition.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use modload::Host;
use modload::patch::Transition;

use crate::scene::{TAIL, WAYS, built, bytes, call, linked};
use crate::target::{PATCH, TARGET};

/// A second target. A thread sleeps in the replacement of its function.
const KEEPER: &str = r#"
static __attribute__((used)) int kept = 70;
static __attribute__((noinline, used)) int nap(int n) { __asm__ volatile(""); return n; }
__attribute__((visibility("default"))) int rest(int n) { return nap(n); }
"#;

const NAPS: &str = r#"
long read(int, void *, unsigned long);
extern int kept KLP_SYMBOL(keeper, kept, 0);
static int asleep;
static int new_nap(int n)
{
	char byte;
	asleep++;
	read(n, &byte, 1);
	return kept;
}
__attribute__((visibility("default"))) int sleepers(int n) { (void)n; return asleep; }
static struct klp_func naps[] = { { .old_name = "nap", .new_func = (void *)new_nap }, {} };
"#;

const LIMIT: Duration = modload_tests::LONG;

fn wait(what: impl Fn() -> bool) {
    modload_tests::until("it is so", what);
}

pub(crate) fn targets_come_and_go_in_mid_transition() {
    let tail = TAIL.replace("{ .name = \"target\"", "{ .name = \"keeper\", .funcs = naps }, { .name = \"target\"");
    let text = format!("{PATCH}{NAPS}{tail}");
    for transition in [Transition::Anywhere, Transition::CheckpointsOnly] {
        let host = Host::builder().process_symbols().transition(transition).build().unwrap();
        let patch = host.load(&linked("patch", &text, WAYS[0])).unwrap();
        wait(|| host.checkpoint() && host.patches().unwrap()[0].transition.is_none());
        let now = || bytes(&patch, &[".text", ".rodata", ".data", ".got"]);
        let untouched = now();
        let keeper = host.load(&built("keeper", KEEPER)).unwrap();
        let for_keeper = now();
        assert!(for_keeper != untouched);
        let (end, mut wakes) = std::io::pipe().unwrap();
        // SAFETY: the function is an `int rest(int)`. Its module stays as long as a thread needs the module: that is
        // the subject of the test.
        let rest = *unsafe { keeper.symbol::<extern "C" fn(i32) -> i32>("rest").unwrap() };
        drop(keeper);
        let descriptor = end.as_raw_fd();
        let sleeper = thread::Builder::new().name("sleeper".into()).spawn(move || rest(descriptor)).unwrap();
        wait(|| call(&patch, "sleepers", 0) == 1);

        // The references to a target that is loaded during a transition are taken back when the target is unloaded, in
        // both directions of the transition.
        let passes = |expected: u64| {
            let target = host.load(&built("target", TARGET)).unwrap();
            assert!(host.checkpoint(), "nothing that changes is on this stack");
            assert_eq!(call(&target, "ask", 3), expected, "{transition:?}");
            assert!(now() != for_keeper);
            drop(target);
            host.unload("target").unwrap();
            assert!(now() == for_keeper, "{transition:?}");
        };
        let is_under_way = || host.patches().unwrap()[0].transition.is_some();
        let (old, new) = (4, 8000 * 3 + 2 * 40);
        passes(new);
        host.disable_patch("patch").unwrap();
        assert!(is_under_way());
        passes(old);
        assert!(is_under_way());
        host.reverse_patch("patch").unwrap();
        wait(|| host.checkpoint() && !is_under_way());
        passes(new);
        host.disable_patch("patch").unwrap();
        assert!(is_under_way());
        let target = host.load(&built("target", TARGET)).unwrap();
        host.force_patch("patch").unwrap();
        assert!(host.patches().unwrap().is_empty());
        assert_eq!(call(&target, "ask", 3), old);
        target.unload().unwrap();
        // A thread is still in a function that refers to the second target.
        let refused = host.unload("keeper").unwrap_err().to_string();
        assert!(refused.contains("\"sleeper\" is in new_nap+0x"), "{refused}");
        wakes.write_all(b"x").unwrap();
        assert_eq!(sleeper.join().unwrap(), 70);
        host.unload("keeper").unwrap();
        drop(patch);
        host.unload_within("patch", LIMIT).unwrap();
    }
}
