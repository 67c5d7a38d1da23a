//! Each stage of a target's load fails in turn, while patches wait for the target: no reference to the target stays
//! written in the patches.

use std::sync::Arc;

use modload::BUILTIN;
use modload::patch::{Callbacks, FuncSpec, ObjectSpec, PatchSpec, Transition};
use modload_ftrace::Ftrace;
use modload_livepatch::Livepatch;
use modload_loader::{Faults, Injected, Reference, Stage};
use modload_static_keys::StaticKeys;

use crate::scene::{WAYS, built, linked, not_enabling};
use crate::target::{PATCH, TARGET};

struct At(Stage);

impl Faults for At {
    fn before(&self, stage: Stage) -> Result<(), Injected> {
        if stage == self.0 { Err(Injected) } else { Ok(()) }
    }
}

fn bytes(module: &Reference) -> Vec<Vec<u8>> {
    let size = |size: u64| usize::try_from(size).unwrap();
    module.sections().map(|section| modload_tests::peek(section.addr, size(section.size))).collect()
}

pub(crate) fn each_stage_of_a_targets_load_fails_in_turn() {
    let loader = modload_tests::loader();
    let ftrace = Ftrace::new();
    let livepatch = Livepatch::new(ftrace, Transition::Anywhere);
    let [(tracing, first), (patching, second), (keys, third)] = BUILTIN;
    loader.subscribe(tracing, first, Arc::new(ftrace)).forget();
    loader.subscribe(patching, second, Arc::new(livepatch)).forget();
    loader.subscribe(keys, third, Arc::new(StaticKeys::new())).forget();
    let text = not_enabling(PATCH);
    let mut patches = Vec::new();
    for name in ["first", "second"] {
        let patch = loader.load_module(&linked(name, &text, WAYS[0])).unwrap();
        let new_func = patch.symbol_info("new_answer").unwrap().addr;
        let funcs = vec![FuncSpec { old_name: "answer".into(), old_sympos: 0, new_func }];
        let object = ObjectSpec { name: Some("target".into()), funcs, callbacks: Callbacks::default() };
        let spec = PatchSpec { objects: vec![object], ..PatchSpec::default() };
        livepatch.enable(&loader, name, spec, Some(patch.clone()), Arc::new(|_| ())).unwrap();
        patches.push(patch);
    }
    let all = || patches.iter().map(bytes).collect::<Vec<_>>();
    let untouched = all();
    let target = built("target", TARGET);
    // Nothing can fail any more when init sections are dropped.
    for stage in Stage::ALL.into_iter().filter(|stage| *stage != Stage::DropInit) {
        let failed = loader.load_module_with(&target, &At(stage)).unwrap_err();
        assert_eq!(failed.stage, stage, "{failed}");
        assert!(all() == untouched, "{stage}: something of the target stays");
    }
    for _ in 0..2 {
        let loaded = loader.load_module(&target).unwrap();
        let written = all();
        assert!(written.iter().zip(&untouched).all(|(written, untouched)| written != untouched));
        loaded.unload().unwrap();
        assert!(all() == untouched);
    }
    livepatch.leave();
    assert!(all() == untouched);
}
