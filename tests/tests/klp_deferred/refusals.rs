//! The refused patches and targets, and the names in the errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use modload::error::sentence;
use modload::timeline::{Event, EventKind};
use modload::{Coming, Order, Refusal, Subscriber};

use crate::scene::{HEAD, TAIL, WAYS, built, bytes, call, host, linked, linked_bytes, loaded};
use crate::target::{PATCH, TARGET};

fn lines(events: &[Event]) -> Vec<String> {
    let line = |event: &Event| match &event.kind {
        EventKind::Log { message } => Some(message.clone()),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

/// The target has no such symbol as the patch needs, or several of that name: the target is refused, and the patch
/// waits as before.
pub(crate) fn a_target_that_a_patch_does_not_fit_is_refused() {
    let host = host();
    let patch = host.load(&linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0])).unwrap();
    let untouched = bytes(&patch, &["."]);
    for (without, line, reason) in [
        (
            TARGET.replace("count", "other"),
            "symbol 'count' not found in symbol table",
            "symbol 'count' not found in object 'target'",
        ),
        (TARGET.replace("twice", "thrice"), "symbol 'twice' not found in symbol table", "symbol 'twice' not found"),
        (
            TARGET.replace("answer", "reply"),
            "symbol 'answer' not found in symbol table",
            "symbol 'answer' not found in object 'target'",
        ),
    ] {
        let recording = host.record();
        let refused = host.load(&built("target", &without)).unwrap_err();
        assert_eq!((refused.stage.to_string().as_str(), refused.error.errno()), ("coming", 22), "{refused}");
        let said = sentence(&refused);
        assert!(said.contains(&format!("patch 'patch' failed for module 'target': {reason}")), "{said}");
        let lines = lines(&recording.finish().events);
        let failed = "failed to initialize patch 'patch' for module 'target' (-22)";
        let refusing = "patch 'patch' failed for module 'target', refusing to load module 'target'";
        assert_eq!(lines, [line, failed, refusing].map(|line| format!("livepatch: {line}")));
        assert!(bytes(&patch, &["."]) == untouched, "what was written before the rest failed is taken back");
    }
    // The patch is refused if its target is loaded already.
    drop(patch);
    host.disable_patch("patch").unwrap();
    host.unload("patch").unwrap();
    let target = host.load(&built("target", &TARGET.replace("count", "other"))).unwrap();
    let refused = host.load(&linked("patch", &format!("{PATCH}{TAIL}"), WAYS[0])).unwrap_err();
    assert_eq!((refused.stage.to_string().as_str(), refused.error.errno()), ("init", 22), "{refused}");
    assert_eq!(call(&target, "ask", 3), 4);
}

/// Changes a byte string that is there, once.
fn changed(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let places: Vec<_> = (0..file.len()).filter(|at| file[*at..].starts_with(from)).collect();
    assert_eq!((places.len(), from.len()), (1, to.len()), "{}", from.escape_ascii());
    let mut file = file.to_vec();
    file[places[0]..places[0] + to.len()].copy_from_slice(to);
    file
}

pub(crate) fn files_that_ask_for_what_cannot_wait_are_refused() {
    let host = host();
    let text = format!(
        "extern int count KLP_SYMBOL(target, count, 0);\nstatic int new_answer(int n) {{ return n + count; }}{TAIL}"
    );
    let file = linked_bytes(&text, WAYS[0]);
    let flags = 0x0010_0042_u64.to_le_bytes(); // SHF_RELA_LIVEPATCH, SHF_INFO_LINK, SHF_ALLOC
    for (from, to, why) in [
        (
            &b"livepatch=Y"[..],
            &b"livepotch=Y"[..],
            "symbol \".klp.sym.target.count,0\": only a module whose .modinfo says livepatch=Y",
        ),
        (b".klp.rela.target..text", b".klp.rela.targets_text", "stand in `.klp.rela.OBJECT.SECTION`"),
        (b".klp.rela.target.", b".klp.rela.tarket.", "a relocation of one object is of a symbol of another"),
        (b".klp.sym.target.count,0", b".klp.sym.target.count,x", "are called `.klp.sym.OBJECT.NAME,POSITION`"),
        (&flags, &0x42_u64.to_le_bytes(), "it does not say with SHF_RELA_LIVEPATCH that a live patch applies it"),
    ] {
        let refused = host.load(&loaded("patch", changed(&file, from, to))).unwrap_err();
        assert_eq!(refused.stage.to_string(), "admit", "{refused}");
        assert!(sentence(&refused).contains(why), "{why}: {refused}");
    }
    // The unchanged file: an inspection shows the waiting symbol, and the file loads afterwards.
    let inspection = modload::inspect::Inspection::of(&file, "patch", 1 << 20).unwrap();
    assert_eq!(inspection.refused, None);
    let [wait] = &inspection.waits[..] else { panic!("{:?}", inspection.waits) };
    assert_eq!((wait.object.as_str(), wait.name.as_str(), wait.position), ("target", "count", 0));
    host.load(&loaded("patch", file)).unwrap();
}

/// Records and sections of which only a part waits.
pub(crate) fn patches_that_wait_in_the_wrong_place_are_refused() {
    let host = host();
    let no_object = TAIL.replace("\"target\"", "\"elsewhere\"");
    let both = TAIL.replace("{ .name = \"target\", .funcs = funcs }", "{ .name = \"target\", .funcs = funcs }, { .name = \"third\", .funcs = others }")
        .replace("static struct klp_object", "static int new_other(int n) { return n + *hidden(); }\nstatic struct klp_func others[] = { { .old_name = \"other\", .new_func = (void *)new_other }, {} };\nstatic struct klp_object");
    let plain = "extern int count KLP_SYMBOL(target, count, 0);\nstatic inline __attribute__((always_inline)) int *hidden(void) { return &count; }\nstatic int new_answer(int n) { return n + *hidden(); }";
    let twofold = "int one(int) KLP_SYMBOL(target, one, 0);\nstatic int new_answer(int n) { __asm__ volatile(\"1: call .modload.klp.target.one.0\\n2:\\n\
        .pushsection .altinstr_replacement, \\\"ax\\\"\\n3: call .modload.klp.third.two.0\\n4:\\n.popsection\\n\
        .pushsection .altinstructions, \\\"a\\\"\\n.long 1b - ., 3b - .\\n.word 0\\n.byte 5, 5\\n.popsection\" ::: \"memory\"); return n; }";
    let elsewhere = "extern int count KLP_SYMBOL(target, count, 0);\nstatic int new_answer(int n) { __asm__ volatile(\"\\n\
        .pushsection .static_call_sites, \\\"a\\\"\\n.long .modload.klp.target.code.0 - ., .modload.klp.target.key.0 - .\\n.popsection\"); return n + count; }";
    for (text, tail, stage, why) in [
        (
            plain,
            no_object.as_str(),
            "init",
            "the module has relocations for object 'target', which the patch does not patch",
        ),
        (plain, &both, "init", "the replacement of 'other' in object 'third' has relocations for object 'target'"),
        (
            twofold,
            TAIL,
            "specialise",
            "record 0 of section \".altinstructions\" depends on \"target\" and on \"third\"",
        ),
        (elsewhere, TAIL, "specialise", "record 0 of section \".static_call_sites\" is about code of \"target\""),
    ] {
        let refused = {
            let recording = host.record();
            let refused = host.load(&linked("patch", &format!("{text}{tail}"), WAYS[2])).unwrap_err();
            assert_eq!(refused.stage.to_string(), stage, "{refused}");
            format!("{} {:?}", sentence(&refused), lines(&recording.finish().events))
        };
        assert!(refused.contains(why), "{why}: {refused}");
        assert!(host.modules().is_empty() && host.patches().unwrap().is_empty());
    }
    // Without `modhost klp-link`: the linker of modules finds a name that no module exports.
    let unlinked = sentence(&host.load(&built("patch", &format!("{HEAD}{plain}{TAIL}"))).unwrap_err());
    assert!(unlinked.contains("\".modload.klp.target.count.0\" (it is marked for `modhost klp-link`"), "{unlinked}");
}

pub(crate) fn a_symbol_that_the_host_does_not_have_is_named() {
    let host = host();
    let text = "int no_such_function(int n) KLP_SYMBOL(vmlinux, no_such_function, 3);\nstatic int new_answer(int n) { return no_such_function(n); }";
    let refused = host.load(&linked("patch", &format!("{text}{TAIL}"), WAYS[0])).unwrap_err();
    let said = sentence(&refused);
    assert!(
        said.contains("\".klp.sym.vmlinux.no_such_function,3\" (the host has none of this name and position)"),
        "{said}"
    );
    assert_eq!(refused.error.errno(), 2);
}

/// Refuses every module when the flag is set.
struct Late(Arc<AtomicBool>);

impl Subscriber for Late {
    fn coming(&self, _: &mut Coming<'_>) -> Result<(), Refusal> {
        if self.0.load(Ordering::Relaxed) { Err("not now".into()) } else { Ok(()) }
    }
}

/// A target is refused after the first of two patches has got its references, by the other patch or by another
/// subscriber.
pub(crate) fn a_target_that_is_refused_midway_leaves_nothing() {
    let host = host();
    let refuses = Arc::new(AtomicBool::new(false));
    let _late = host.subscribe("late", Order::mirrored(0), Late(refuses.clone()));
    let key = "DECLARE_STATIC_KEY_FALSE(feature) KLP_SYMBOL(target, feature, 0);\n\
        static int new_answer(int n) { return static_branch_unlikely(&feature) ? 100 : n + 10; }";
    let feature = "#include <modload/module.h>\n#include <modload/jump_label.h>\nMODULE_LICENSE(\"GPL\");\n\
        static __attribute__((used)) DEFINE_STATIC_KEY_TRUE(feature);";
    let first = host.load(&linked("patch", &format!("{key}{TAIL}"), WAYS[0])).unwrap();
    let callback = TAIL
        .replace(".funcs = funcs", ".funcs = funcs, .callbacks = { .pre_patch = asked }")
        .replace("static struct klp_object", "static int refusing;\nstatic int asked(struct klp_object *object) { (void)object; return refusing; }\n\
            __attribute__((visibility(\"default\"))) int refuse(int with) { refusing = with; return 0; }\nstatic struct klp_object");
    let second = host.load(&linked("second", &format!("{PATCH}{callback}"), WAYS[0])).unwrap();
    let untouched = || [&first, &second].map(|patch| bytes(patch, &["."]));
    let before = untouched();
    let target = |text: &str| host.load(&built("target", &format!("{feature}{text}")));
    for reason in ["symbol 'count' not found", "pre-patch callback failed", "not now", "init returned -5"] {
        let failing = match reason {
            "symbol 'count' not found" => TARGET.replace("count", "other"),
            "init returned -5" => {
                format!("{TARGET}static int __init fails(void) {{ return -5; }}\nmodule_init(fails);")
            }
            _ => TARGET.to_owned(),
        };
        let refusing = if reason == "pre-patch callback failed" { 0_u64.wrapping_sub(16) } else { 0 };
        call(&second, "refuse", refusing);
        refuses.store(reason == "not now", Ordering::Relaxed);
        let refused = sentence(&target(&failing).unwrap_err());
        assert!(refused.contains(reason), "{reason}: {refused}");
        call(&second, "refuse", 0);
        assert!(untouched() == before, "{reason}");
    }
    refuses.store(false, Ordering::Relaxed);
    let there = target(TARGET).unwrap();
    assert_eq!(call(&there, "ask", 3), 8000 * 3 + 2 * 40);
    host.disable_patch("second").unwrap();
    assert_eq!(call(&there, "ask", 3), 100, "the first is in force");
    assert!(untouched() != before);
    drop(there);
    host.unload("target").unwrap();
    assert!(untouched() == before);
}
