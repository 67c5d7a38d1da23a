//! A host in which threads migrate at checkpoints only: its clients see the threads that have not reached one.

#[allow(dead_code, reason = "the other tests need the rest of it")]
mod scene;

use std::sync::Arc;

use modload::patch::{FuncSpec, ObjectSpec, PatchSpec, Transition};
use modload::{Host, Image};
use modload_control::Client;
use modload_control::protocol::{Called, PatchAction, PatchEntry, Request, ResultType};
use modload_fixtures::{Compiler, Language, object_from_text};
use scene::Scene;

const TARGET: &str = "
__attribute__((noinline)) int answer(int a) { __asm__ volatile(\"\"); return a; }
int new_answer(int a) { return a + 100; }
";

#[test]
fn threads_that_come_to_no_checkpoint_are_named() {
    let host = Arc::new(Host::builder().process_symbols().transition(Transition::CheckpointsOnly).build().unwrap());
    let flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-fpatchable-function-entry=5"];
    let object = object_from_text("answering", Language::C, TARGET, Compiler::Cc, &flags).unwrap();
    // SAFETY: the code is this test's.
    let image = unsafe { Image::trusted(std::fs::read(object).unwrap()) };
    let module = host.load(&image.named("answering")).unwrap();
    let scene = Scene::of(host.clone());
    let mut client = scene.client();
    let call = |client: &mut Client| {
        let (symbol, result) = ("answer".into(), ResultType::I32);
        let request = Request::Call { symbol, module: None, result, arguments: vec![1] };
        client.request::<Called>(&request, &[], |_, _| {}).unwrap().result.as_i64().unwrap()
    };
    let status = |client: &mut Client| -> PatchEntry {
        client.request(&Request::PatchStatus { name: "fix".into() }, &[], |_, _| {}).unwrap()
    };
    assert_eq!(call(&mut client), 1);
    let new_func = module.symbol_info("new_answer").unwrap().addr;
    let func = FuncSpec { old_name: "answer".into(), old_sympos: 0, new_func };
    let object = ObjectSpec { name: Some("answering".into()), funcs: vec![func], ..ObjectSpec::default() };
    host.enable_patch("fix", PatchSpec { objects: vec![object], ..PatchSpec::default() }, None).unwrap();
    // The session reaches a checkpoint after each request, but perhaps not before this one.
    let first = call(&mut client);
    assert!(first == 1 || first == 101, "{first}");
    assert_eq!(call(&mut client), 101);
    // This thread has not reached a checkpoint, nor has the thread that waits for it.
    let patch = status(&mut client);
    assert_eq!(patch.transition.as_deref(), Some("patching"));
    assert!(patch.blocking.len() >= 2 && patch.blocked == patch.blocking.len(), "{patch:?}");
    for thread in &patch.blocking {
        assert_eq!((&*thread.why, &thread.inside, thread.backtrace.len()), ("has not come to a checkpoint", &None, 0));
        assert!(!thread.name.is_empty() && !thread.state.is_empty(), "{thread:?}");
    }
    let me = std::fs::read_link("/proc/thread-self").unwrap();
    let me: i32 = me.file_name().unwrap().to_str().unwrap().parse().unwrap();
    assert!(patch.blocking.iter().any(|thread| thread.thread == me), "{me}: {patch:?}");
    assert!(host.checkpoint());
    assert!(status(&mut client).blocking.iter().all(|thread| thread.thread != me));
    let force = Request::Patch { name: "fix".into(), action: PatchAction::Force };
    let forced: Option<PatchEntry> = client.request(&force, &[], |_, _| {}).unwrap();
    assert!(forced.is_some_and(|patch| patch.forced && patch.transition.is_none()));
}
