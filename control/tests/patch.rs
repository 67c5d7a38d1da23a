//! Patches over the socket: listed, shown while a thread blocks the transition, reversed, forced and disabled.

#[allow(dead_code, reason = "the other tests need the rest of it")]
mod scene;

use std::sync::Arc;
use std::thread;

use modload::patch::{FuncSpec, ObjectSpec, PatchError, PatchSpec};
use modload::{Host, Image, Module};
use modload_control::protocol::{Called, PatchAction, PatchEntry, Request, ResultType};
use modload_control::{Client, ClientError};
use modload_fixtures::{Compiler, Language, Patience, is_for_want_of_a_processor, object_from_text, until};
use scene::Scene;

const TARGET: &str = "
static volatile int go, there;
void release(void) { go = 1; }
int arrived(int a) { return a + there; }
__attribute__((noinline)) int waits(int a) { there = 1; while (!go) __builtin_ia32_pause(); __asm__ volatile(\"\"); return a; }
int new_waits(int a) { return a + 100; }
";

fn load(host: &Host) -> Module {
    let flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-fpatchable-function-entry=5"];
    let object = object_from_text("waiting", Language::C, TARGET, Compiler::Cc, &flags).unwrap();
    // SAFETY: the code is this test's.
    host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("waiting")).unwrap()
}

fn enable(host: &Host, module: &Module) {
    let new_func = module.symbol_info("new_waits").unwrap().addr;
    let func = FuncSpec { old_name: "waits".into(), old_sympos: 0, new_func };
    let object = ObjectSpec { name: Some("waiting".into()), funcs: vec![func], ..ObjectSpec::default() };
    let spec = PatchSpec { objects: vec![object], ..PatchSpec::default() };
    let mut patience = Patience::new();
    while let Err(error) = host.enable_patch("fix", spec.clone(), None) {
        // On a busy machine a thread may not run in time.
        assert!(matches!(error, PatchError::Threads(_)), "{error:?}");
        patience.turn(|| error.to_string());
    }
}

fn call(client: &mut Client, symbol: &str) -> i64 {
    let request = Request::Call { symbol: symbol.into(), module: None, result: ResultType::I32, arguments: vec![1] };
    client.request::<Called>(&request, &[], |_, _| {}).unwrap().result.as_i64().unwrap()
}

fn act(client: &mut Client, action: PatchAction) -> Result<Option<PatchEntry>, ClientError> {
    client.request(&Request::Patch { name: "fix".into(), action }, &[], |_, _| {})
}

fn list(client: &mut Client) -> Vec<PatchEntry> {
    client.request(&Request::Patches {}, &[], |_, _| {}).unwrap()
}

fn status(client: &mut Client) -> PatchEntry {
    let mut patience = Patience::new();
    loop {
        match client.request(&Request::PatchStatus { name: "fix".into() }, &[], |_, _| {}) {
            Ok(status) => return status,
            Err(error) => {
                assert!(is_for_want_of_a_processor(&error.to_string()), "{error}");
                patience.turn(|| error.to_string());
            }
        }
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused(refused) => refused.kind,
        other => panic!("{other}"),
    }
}

#[test]
fn a_patch_is_looked_at_turned_round_and_forced() {
    let host = Arc::new(Host::builder().process_symbols().build().unwrap());
    let module = load(&host);
    let scene = Scene::of(host.clone());
    let mut client = scene.client();
    assert_eq!(list(&mut client), []);
    assert_eq!(refused(act(&mut client, PatchAction::Disable)), "no_patch");

    // A call that does not return.
    let mut other = scene.client();
    let waiting = thread::spawn(move || call(&mut other, "waits"));
    until("the call is under way", || call(&mut client, "arrived") == 2);
    enable(&host, &module);
    let patch = status(&mut client);
    assert_eq!((patch.transition.as_deref(), patch.enabled, patch.blocked), (Some("patching"), true, 1));
    assert_eq!(patch.objects[0].funcs, ["waits,1"]);
    let [thread] = &patch.blocking[..] else { panic!("{patch:?}") };
    assert_eq!(thread.state, "running");
    assert!(thread.inside.as_ref().is_some_and(|frame| frame.starts_with("waits+")), "{thread:?}");
    assert!(thread.backtrace[0].starts_with("waits+") && thread.backtrace.len() > 3, "{thread:?}");
    assert_eq!(call(&mut client, "waits"), 101, "others are over");

    // No thread blocks the reversed transition, so it ends at once.
    assert_eq!(act(&mut client, PatchAction::Reverse).unwrap(), None);
    assert_eq!(refused(act(&mut client, PatchAction::Reverse)), "no_patch");

    enable(&host, &module);
    let forced = act(&mut client, PatchAction::Force).unwrap().expect("it is enabled");
    assert_eq!((forced.forced, forced.transition.as_deref(), forced.blocked), (true, None, 0));
    assert_eq!(refused(act(&mut client, PatchAction::Force)), "patch");
    call(&mut client, "release");
    assert_eq!(waiting.join().unwrap(), 1, "who is in old code finishes it");
    act(&mut client, PatchAction::Disable).unwrap();
    until("the patch is gone", || list(&mut client).is_empty());
    assert_eq!(call(&mut client, "waits"), 1);
}
