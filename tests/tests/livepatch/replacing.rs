//! Functions are replaced, of modules and of the host's own, and put back.

use std::sync::atomic::{AtomicUsize, Ordering};

use modload::patch::{FuncSpec, ObjectSpec, PatchSpec};
use modload::trace::{Call, HostFunction};
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};

use crate::scene::{NEW, TARGET, built, call, func, host, patch, settled, waiting};

pub(crate) fn a_function_is_replaced_and_put_back() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    assert_eq!(call(&target, "one", 1), 2);
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), Some(&new)).unwrap();
    settled(&host);
    assert_eq!((call(&target, "one", 1), call(&target, "both", 1)), (102, 102_003));
    assert!(new.unload().is_err(), "a patch keeps its module");
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!((call(&target, "one", 1), call(&target, "both", 1)), (2, 2003));
    host.unload("new").unwrap();
    target.unload().unwrap();
    assert!(matches!(host.disable_patch("first"), Err(modload::patch::PatchError::Unknown(_))));
}

pub(crate) fn a_patch_waits_for_its_target() {
    let host = host();
    let new = host.load(&built("new", NEW)).unwrap();
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), Some(&new)).unwrap();
    for _ in 0..3 {
        let target = host.load(&built("target", TARGET)).unwrap();
        assert_eq!(call(&target, "both", 1), 102_003);
        target.unload().unwrap();
    }
    host.disable_patch("first").unwrap();
    let target = host.load(&built("target", TARGET)).unwrap();
    assert_eq!(call(&target, "both", 1), 2003);
}

pub(crate) fn patches_stack_up_and_are_replaced_at_once() {
    let host = host();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one"), func("two", &new, "new_two")]), None)
        .unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 102_103);
    host.enable_patch("second", patch("target", vec![func("one", &new, "newer_one")]), None).unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 202_103);
    let third = PatchSpec { replace: true, ..patch("target", vec![func("two", &new, "new_two")]) };
    host.enable_patch("third", third, None).unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 2103);
    let names: Vec<_> = host.patches().unwrap().into_iter().map(|patch| patch.name).collect();
    assert_eq!(names, ["third"]);
    host.disable_patch("third").unwrap();
    settled(&host);
    assert_eq!(call(&target, "both", 1), 2003);
}

/// A patch of one function, found at a position.
fn positioned(new: &Module, (old, position): (&str, u64), function: &str) -> PatchSpec {
    let func = FuncSpec { old_sympos: position, ..func(old, new, function) };
    PatchSpec { replace: true, ..patch("target", vec![func]) }
}

/// Two records mean one function: by positions 0 and 1, or by two names of one address. The newer patch has replaced
/// the older one, and the original does not return, whether the target is loaded before or after the patches are
/// enabled.
pub(crate) fn replacing_compares_functions_by_address() {
    let aliased = format!("{TARGET}\nextern __typeof__(one) also_one __attribute__((alias(\"one\")));\n");
    let ways = [("one", 0), ("one", 1), ("also_one", 0), ("also_one", 1)];
    for (older, newer) in ways.iter().flat_map(|older| ways.iter().map(move |newer| (*older, *newer))) {
        for target_comes in ["first", "between", "last"] {
            let host = host();
            let new = host.load(&built("new", NEW)).unwrap();
            let mut target = None;
            let mut comes = |when| {
                if when == target_comes {
                    target = Some(host.load(&built("target", &aliased)).unwrap());
                }
            };
            comes("first");
            host.enable_patch("older", positioned(&new, older, "new_one"), None).unwrap();
            comes("between");
            host.enable_patch("newer", positioned(&new, newer, "newer_one"), None).unwrap();
            comes("last");
            settled(&host);
            let target = target.unwrap();
            assert_eq!(call(&target, "one", 1), 202, "{older:?} {newer:?}: the target comes {target_comes}");
            host.disable_patch("newer").unwrap();
            settled(&host);
            assert_eq!(call(&target, "one", 1), 2, "{older:?} {newer:?}: the target comes {target_comes}");
        }
    }
}

/// The target is loaded while the patch that replaces another one is still in transition, so its no-op functions exist
/// too.
pub(crate) fn replacing_compares_functions_of_a_target_that_comes_late() {
    let host = host();
    let new = host.load(&built("new", NEW)).unwrap();
    let other = host.load(&built("other", TARGET)).unwrap();
    host.enable_patch("older", positioned(&new, ("one", 0), "new_one"), None).unwrap();
    let thread = waiting(&other);
    let mut newer = positioned(&new, ("one", 1), "newer_one");
    newer.objects.extend(patch("other", vec![func("waits", &new, "new_waits")]).objects);
    host.enable_patch("newer", newer, None).unwrap();
    assert!(host.patches().unwrap().iter().any(|patch| patch.transition.is_some()), "a thread is in its way");
    let target = host.load(&built("target", TARGET)).unwrap();
    // The older one's, or the newer one's: this thread may be over. The original's never.
    assert!([102, 202].contains(&call(&target, "one", 1)), "the original has run");
    call(&other, "release", 0);
    assert_eq!(thread.join().unwrap(), 2);
    settled(&host);
    assert_eq!(call(&target, "one", 1), 202);
}

#[link(name = "entries", kind = "static")]
unsafe extern "C" {
    static patchable_functions: [extern "C" fn(i32) -> i32; 8];
}

pub(crate) fn functions_of_the_hosts_own_are_patched() {
    let host = host();
    // SAFETY: written once, when the program is linked.
    let functions = unsafe { patchable_functions };
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let registered = (1..).zip(functions).map(|(number, function)| {
        // SAFETY: compiled with five NOPs at its entry, and exists as long as the process.
        unsafe { HostFunction::new(format!("add_{number}"), function as *const ()) }
    });
    host.register_host_functions(registered.collect()).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    assert_eq!(functions.map(|function| function(10)), [11, 12, 13, 14, 15, 16, 17, 18]);
    let object = ObjectSpec { funcs: vec![func("add_3", &new, "new_one")], ..ObjectSpec::default() };
    host.enable_patch("first", PatchSpec { objects: vec![object], ..PatchSpec::default() }, Some(&new)).unwrap();
    settled(&host);
    assert_eq!(functions.map(|function| function(10)), [11, 12, 111, 14, 15, 16, 17, 18]);
    assert_eq!(host.patches().unwrap()[0].objects[0].name, "vmlinux");
    // Through the tracer of the function.
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let tracing = host.trace("vmlinux:add_*".parse().unwrap(), |_: &Call<'_>| {
        CALLS.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(functions.map(|function| function(10)), [11, 12, 111, 14, 15, 16, 17, 18]);
    assert_eq!(CALLS.load(Ordering::Relaxed), 8);
    drop(tracing);
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!(functions.map(|function| function(10)), [11, 12, 13, 14, 15, 16, 17, 18]);
}

pub(crate) fn what_is_thrown_passes_through_a_patched_function() {
    const THROWING: &str = "
    extern \"C\" {
    __attribute__((noinline)) int throws(int a) { if (a == 1) throw 1; return a; }
    int throws_more(int a) { if (a <= 2) throw 2; return a + 100; }
    int catches(int a) { try { return throws(a); } catch (int thrown) { return -thrown; } }
    }
    ";
    // SAFETY: the C++ runtime, whose initialisers need nothing.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null());
    let flags = ["-O2", "-fPIC", "-fpatchable-function-entry=5"];
    let object = object_from_text("throwing", Language::Cxx, THROWING, Compiler::Cc, &flags).unwrap();
    let host = host();
    // SAFETY: the text is ours.
    let throwing = host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("throwing")).unwrap();
    let results = || [1, 2, 3].map(|a| call(&throwing, "catches", a));
    assert_eq!(results(), [-1, 2, 3]);
    host.enable_patch("first", patch("throwing", vec![func("throws", &throwing, "throws_more")]), None).unwrap();
    settled(&host);
    assert_eq!(results(), [-2, -2, 103]);
    host.disable_patch("first").unwrap();
    settled(&host);
    assert_eq!(results(), [-1, 2, 3]);
}

pub(crate) fn a_host_that_goes_takes_its_patches_along() {
    let host = host();
    let used = || modload::text::Arena::get().unwrap().usage().map(|stripe| stripe.used);
    let before = used();
    let target = host.load(&built("target", TARGET)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let other = built("target", TARGET);
    host.enable_patch("first", patch("target", vec![func("one", &new, "new_one")]), Some(&new)).unwrap();
    // Another host has a module of that name, which is independent.
    let second = Host::builder().process_symbols().build().unwrap();
    let same = second.load(&other).unwrap();
    assert_eq!((call(&target, "one", 1), call(&same, "one", 1)), (102, 2));
    assert!(second.patches().unwrap().is_empty());
    drop((target, new));
    drop(host);
    assert_eq!(call(&same, "one", 1), 2);
    drop(same);
    drop(second);
    // Stubs stay; of modules nothing does.
    assert!(used()[0] - before[0] <= 64 * 64, "{:?} {:?}", before, used());
    assert_eq!(used()[1..], before[1..]);
}
