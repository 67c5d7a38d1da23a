//! Functions and variables that a target does not export.

use std::time::Duration;

use modload::error::sentence;
use modload::patch::{Callbacks, FuncSpec, ObjectSpec, PatchSpec};

use crate::scene::{TAIL, WAYS, built, bytes, call, host, linked, not_enabling};

const LIMIT: Duration = modload_tests::LONG;

pub(crate) const TARGET: &str = r#"
static __attribute__((used)) int count = 40;
static __attribute__((noinline, used)) int twice(int n) { __asm__ volatile(""); return 2 * n; }
static __attribute__((noinline, used)) int answer(int n) { __asm__ volatile(""); return n + 1; }
__attribute__((visibility("default"))) int ask(int n) { return answer(n); }
__attribute__((visibility("default"))) int recount(int n) { return count = n; }
"#;

/// Refers to both in every way that compilers have: a call, a tail call, an address, a value, from data.
pub(crate) const PATCH: &str = r#"
extern int count KLP_SYMBOL(target, count, 0);
int twice(int n) KLP_SYMBOL(target, twice, 0);
static int (*volatile by_address)(int) = twice;
static int *const constant = &count;
static int (*pick(void))(int) { return twice; }
static __attribute__((noinline)) int tail(int n) { return twice(n); }
static int new_answer(int n)
{
	int sum = twice(n) + tail(n) + by_address(n) + pick()(n);
	return 1000 * sum + *constant + count++;
}
"#;

fn expected(n: u64, count: u64) -> u64 {
    8000 * n + 2 * count
}

pub(crate) fn what_is_not_exported_is_there_when_the_object_is() {
    for way in WAYS {
        let host = host();
        let text = format!("{PATCH}{TAIL}");
        // First the patch, which waits.
        let patch = host.load(&linked("patch", &text, way)).unwrap_or_else(|error| panic!("{way:?}: {error}"));
        let untouched = bytes(&patch, &["."]);
        for round in 0..3 {
            let target = host.load(&built("target", TARGET)).unwrap_or_else(|error| panic!("{way:?}: {error}"));
            assert_eq!(call(&target, "ask", 3), expected(3, 40), "{way:?}");
            assert_eq!(call(&target, "ask", 4), expected(4, 41), "{way:?}");
            call(&target, "recount", 7);
            assert_eq!(call(&target, "ask", 5 + round), expected(5 + round, 7), "{way:?}");
            assert!(bytes(&patch, &["."]) != untouched);
            target.unload().unwrap();
            assert!(bytes(&patch, &["."]) == untouched, "{way:?}: taken back");
        }
        // The target is loaded already.
        host.disable_patch("patch").unwrap();
        drop(patch);
        host.unload_within("patch", LIMIT).unwrap();
        let target = host.load(&built("target", TARGET)).unwrap();
        assert_eq!(call(&target, "ask", 3), 4);
        host.load(&linked("patch", &text, way)).unwrap();
        assert_eq!(call(&target, "ask", 3), expected(3, 40), "{way:?}");
    }
}

pub(crate) fn a_patch_is_as_it_was_when_it_is_disabled() {
    let host = host();
    let patch = host.load(&linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0])).unwrap();
    let untouched = bytes(&patch, &["."]);
    let target = host.load(&built("target", TARGET)).unwrap();
    assert_eq!(call(&target, "ask", 3), expected(3, 40));
    host.disable_patch("patch").unwrap();
    assert_eq!(call(&target, "ask", 3), 4);
    assert!(bytes(&patch, &["."]) == untouched, "nothing of it is for the target any more");
    target.unload().unwrap();
    drop(patch);
    host.unload_within("patch", LIMIT).unwrap();
}

/// If the patch itself has changed a variable that pointed to the target, the value stays unchanged.
pub(crate) fn a_variable_that_the_patch_has_changed_is_its_own() {
    const POINTS: &str = r#"
extern int count KLP_SYMBOL(target, count, 0);
static int own;
static int *volatile where = &count;
static int new_answer(int n) { return n + *where; }
__attribute__((visibility("default"))) int point(int to) { where = to ? &own : 0; return 0; }
"#;
    let host = host();
    let patch = host.load(&linked("patch", &format!("{POINTS}{TAIL}"), WAYS[0])).unwrap();
    let untouched = bytes(&patch, &[".text"]);
    for _ in 0..2 {
        let target = host.load(&built("target", TARGET)).unwrap();
        assert_eq!(call(&target, "ask", 1), 41);
        call(&patch, "point", 1);
        assert_eq!(call(&target, "ask", 1), 1);
        target.unload().unwrap();
        assert!(bytes(&patch, &[".text"]) == untouched);
        let refused = sentence(&host.load(&built("target", TARGET)).unwrap_err());
        let why = "patch 'patch' cannot be relocated for object 'target': relocation 0 of section ";
        assert!(refused.contains(why) && refused.contains("expected [00, 00, 00, 00, 00, 00, 00, 00]"), "{refused}");
        assert!(bytes(&patch, &[".text"]) == untouched, "nothing was written");
        call(&patch, "point", 0);
    }
}

/// A patch that the host enables writes the waiting references of the module that the patch holds. The patch is refused
/// if it holds another module, or none.
pub(crate) fn a_patch_that_the_host_enables_holds_its_module() {
    let host = host();
    let module = host.load(&linked("patch", &not_enabling(PATCH), WAYS[0])).unwrap();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new_func = module.symbol_info("new_answer").unwrap().addr;
    let funcs = vec![FuncSpec { old_name: "answer".into(), old_sympos: 0, new_func }];
    let object = ObjectSpec { name: Some("target".into()), funcs, callbacks: Callbacks::default() };
    let spec = PatchSpec { objects: vec![object], ..PatchSpec::default() };
    for keep in [None, Some(&target)] {
        let refused = host.enable_patch("own", spec.clone(), keep).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "module 'patch' has functions whose relocations wait for objects, so the patch must hold this module: enable the patch with it"
        );
    }
    assert_eq!(call(&target, "ask", 3), 4);
    host.enable_patch("own", spec, Some(&module)).unwrap();
    assert_eq!(call(&target, "ask", 3), expected(3, 40));
    host.disable_patch("own").unwrap();
    assert_eq!(call(&target, "ask", 3), 4);
}

/// A host is dropped while references are written: nothing of the host is left, and the next host starts without them.
pub(crate) fn a_host_that_goes_leaves_nothing_written() {
    let round = |patch_first: bool| {
        let host = host();
        let (patch, target) = (linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0]), built("target", TARGET));
        let order = if patch_first { [&patch, &target] } else { [&target, &patch] };
        let modules = order.map(|image| host.load(image).unwrap());
        let target = if patch_first { &modules[1] } else { &modules[0] };
        assert_eq!(call(target, "ask", 3), expected(3, 40));
        drop(modules);
        drop(host);
        modload::text::Arena::get().unwrap().usage().map(|stripe| stripe.used)
    };
    // Live patching keeps the stubs that were made.
    let [_, after] = [true, false].map(round);
    for patch_first in [true, false, true, false] {
        assert_eq!(round(patch_first), after);
    }
}
