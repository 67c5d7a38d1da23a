//! Functions that cannot be patched are refused, and the error names them.

use std::sync::Arc;

use modload::error::sentence;
use modload::patch::{Callbacks, FuncSpec, ObjectSpec, PatchSpec};

use crate::scene::{NEW, TARGET, built, call, func, host, patch};

pub(crate) fn what_cannot_be_patched_is_refused_by_name() {
    const TWICE: &str = "
    static __attribute__((noinline)) int same(int a) { __asm__ volatile(\"\"); return a + 1; }
    int first_same(int a) { return same(a); }
    __attribute__((noinline, patchable_function_entry(0))) int plain(int a) { __asm__ volatile(\"\"); return a; }
    int data = 7;
    ";
    let host = host();
    let twice = host.load(&built("twice", TWICE)).unwrap();
    let new = host.load(&built("new", NEW)).unwrap();
    let why = |name: &str, spec: PatchSpec| {
        let mut error: &dyn std::error::Error = &host.enable_patch(name, spec, None).unwrap_err();
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            text = format!("{text}: {source}");
            error = source;
        }
        text
    };
    let of = |old: &str, position: u64| {
        patch("twice", vec![FuncSpec { old_sympos: position, ..func(old, &new, "new_one") }])
    };
    assert_eq!(why("p", of("nothing", 0)), "symbol 'nothing' not found in object 'twice'");
    assert_eq!(why("p", of("data", 0)), "symbol 'data' not found in object 'twice'");
    let position = why("p", of("same", 2));
    assert_eq!(
        position,
        "symbol 'same' occurs 1 times in object 'twice', and position 2 selects none of them: use a position from 1 to 1"
    );
    assert!(why("p", of("plain", 0)).starts_with("function 'plain' of object 'twice' cannot be patched: "));
    assert_eq!(why("p", PatchSpec::default()), "the patch has no objects: a patch needs at least one");
    host.enable_patch("p", of("same", 1), None).unwrap();
    assert_eq!(call(&twice, "first_same", 1), 102);
    assert_eq!(why("p", of("same", 1)), "patch 'p' is enabled already");
    let disabled = host.disable_patch("q").unwrap_err();
    assert_eq!(disabled.to_string(), "there is no patch 'q'");
    assert!(matches!(host.reverse_patch("p"), Err(modload::patch::PatchError::NoTransition)));
    assert!(matches!(host.force_patch("p"), Err(modload::patch::PatchError::NoTransition)));
    // A target that a patch does not fit is refused, and the error says why.
    host.enable_patch("late", patch("later", vec![func("missing", &new, "new_one")]), None).unwrap();
    let refused = sentence(&host.load(&built("later", "int there(int a) { return a; }")).unwrap_err());
    assert!(refused.contains("patch 'late' failed for module 'later'") && refused.contains("'missing'"), "{refused}");
    // The error also names a callback that refuses.
    let callbacks = Callbacks { pre_patch: Some(Arc::new(|| Err(-19))), ..Callbacks::default() };
    let funcs = vec![func("first_same", &new, "new_one")];
    let object = ObjectSpec { name: Some("twice".into()), funcs, callbacks };
    let text = why("c", PatchSpec { objects: vec![object], ..PatchSpec::default() });
    assert_eq!(text, "pre-patch callback failed for object 'twice': it returned -19");
    assert_eq!(call(&twice, "first_same", 1), 102);
}

/// Linux returns EEXIST, because two of its sysfs folders would have one name. Two names of one address are refused,
/// too.
pub(crate) fn a_function_named_twice_is_refused() {
    const EEXIST: i32 = 17;
    let aliased = format!("{TARGET}\nextern __typeof__(one) also_one __attribute__((alias(\"one\")));\n");
    let host = host();
    let new = host.load(&built("new", NEW)).unwrap();
    let funcs = |second: &str, position: u64| {
        let second = FuncSpec { old_sympos: position, ..func(second, &new, "newer_one") };
        vec![func("one", &new, "new_one"), func("two", &new, "new_two"), second]
    };
    let by_name = |position| patch("target", funcs("one", position));
    let by_alias = patch("target", funcs("also_one", 0));
    let mut objects = patch("target", vec![func("one", &new, "new_one")]);
    objects.objects.extend(patch("target", vec![func("two", &new, "new_two")]).objects);
    let twice = |second: &str| {
        format!(
            "the patch replaces a function of object 'target' twice, as 'one' and as '{second}': leave one of its records out"
        )
    };
    let refused = |spec: PatchSpec, why: &str| {
        let error = host.enable_patch("p", spec, None).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.errno()), (why, EEXIST));
        assert!(host.patches().unwrap().is_empty());
    };
    let two_objects = "the patch has two records for object 'target': merge them into one";
    for is_there in [false, true] {
        let target = is_there.then(|| host.load(&built("target", &aliased)).unwrap());
        for position in [0, 1] {
            refused(by_name(position), &twice("one"));
        }
        refused(objects.clone(), two_objects);
        if let Some(target) = target {
            refused(by_alias.clone(), &twice("also_one"));
            assert_eq!(call(&target, "both", 1), 2003);
            drop(target);
            host.unload("target").unwrap();
        }
    }
    // A problem that is known only when the target is loaded makes the target's load fail.
    host.enable_patch("late", by_alias, None).unwrap();
    let error = host.load(&built("target", &aliased)).unwrap_err();
    assert!(sentence(&error).contains(&twice("also_one")), "{error}");
    assert_eq!(error.error.errno(), EEXIST);
}
