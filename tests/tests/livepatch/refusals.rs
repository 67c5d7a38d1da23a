//! What cannot be patched is refused, and named.

use std::sync::Arc;

use modload::{Callbacks, FuncSpec, ObjectSpec, PatchSpec};

use crate::scene::{NEW, built, call, func, host, patch};

pub(crate) fn refused() {
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
    assert_eq!(position, "symbol 'same' is there 1 times in object 'twice': position 2 is none of them");
    assert!(why("p", of("plain", 0)).starts_with("function 'plain' of object 'twice' cannot be patched: "));
    assert_eq!(why("p", PatchSpec::default()), "the patch has no objects");
    host.enable_patch("p", of("same", 1), None).unwrap();
    assert_eq!(call(&twice, "first_same", 1), 102);
    assert_eq!(why("p", of("same", 1)), "patch 'p' is enabled already");
    let disabled = host.disable_patch("q").unwrap_err();
    assert_eq!(disabled.to_string(), "there is no patch 'q'");
    assert!(matches!(host.reverse_patch("p"), Err(modload::PatchError::NoTransition)));
    assert!(matches!(host.force_patch("p"), Err(modload::PatchError::NoTransition)));
    // A target whose patch does not fit it is refused, and says why.
    host.enable_patch("late", patch("later", vec![func("missing", &new, "new_one")]), None).unwrap();
    let refused = host.load(&built("later", "int there(int a) { return a; }")).unwrap_err().to_string();
    assert!(refused.contains("patch 'late' failed for module 'later'") && refused.contains("'missing'"), "{refused}");
    // Who refuses in a callback is named, too.
    let callbacks = Callbacks { pre_patch: Some(Arc::new(|| Err(-19))), ..Callbacks::default() };
    let funcs = vec![func("first_same", &new, "new_one")];
    let object = ObjectSpec { name: Some("twice".into()), funcs, callbacks };
    let text = why("c", PatchSpec { objects: vec![object], ..PatchSpec::default() });
    assert_eq!(text, "pre-patch callback failed for object 'twice': it returned -19");
    assert_eq!(call(&twice, "first_same", 1), 102);
}
