//! Clients that behave badly at any moment: they send in pieces, do not read, and do not wait.

mod scene;

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use modload_control::protocol::{ModuleEntry, ModuleListing, ModuleName, Request};
use modload_control::{Client, ClientError};
use modload_fixtures::{Compiler, Language, is_for_want_of_a_processor, object_from_text, until};
use scene::{Raw, Scene, object};
use serde::de::DeserializeOwned;
use serde_json::Value;

const LOAD: &str = "{\"id\":1,\"op\":\"load\",\"files\":[\"greet.o\"]}\n";
const UNLOAD: &str = "{\"id\":2,\"op\":\"unload\",\"name\":\"greet\"}\n";

/// Returns the answer, after any events.
fn answer(raw: &mut Raw) -> Value {
    std::iter::from_fn(|| raw.line()).find(|line| line["event"].is_null()).expect("an answer")
}

fn request<A: DeserializeOwned>(client: &mut Client, request: &Request) -> A {
    client.request(request, &[], |_, _| {}).unwrap()
}

#[test]
fn a_descriptor_may_come_with_any_byte_of_its_line() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    let mut greet = File::open(object("greet")).unwrap();
    for at in 0..LOAD.len() {
        let [before, with, behind] = [&LOAD[..at], &LOAD[at..=at], &LOAD[at + 1..]];
        raw.send(before.as_bytes(), &[]);
        raw.send(with.as_bytes(), &[greet.as_fd()]);
        raw.send(behind.as_bytes(), &[]);
        // The same descriptor each time: reading has not changed its file offset, and the offset does not matter.
        let loaded = answer(&mut raw);
        assert_eq!(loaded["ok"]["module"], "greet", "byte {at}: {loaded}");
        assert_eq!(greet.stream_position().unwrap(), if at == 0 { 0 } else { 7 });
        greet.rewind().unwrap();
        greet.read_exact(&mut [0; 7]).unwrap();
        until("it is unloaded", || {
            raw.send(UNLOAD.as_bytes(), &[]);
            let unloaded = answer(&mut raw);
            let is_unloaded = unloaded["ok"].is_object();
            assert!(is_unloaded || is_for_want_of_a_processor(&unloaded.to_string()), "{unloaded}");
            is_unloaded
        });
    }
}

#[test]
fn a_client_may_vanish_at_any_byte() {
    let scene = Scene::new();
    let greet = File::open(object("greet")).unwrap();
    for at in 1..=LOAD.len() {
        scene.raw().send(&LOAD.as_bytes()[..at], &[greet.as_fd()]);
        // The client ends only its sending side. Its request is answered.
        let mut half = scene.raw();
        half.send(&LOAD.as_bytes()[..at], &[greet.as_fd()]);
        half.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answered = std::iter::from_fn(|| half.line()).any(|line| line["event"].is_null());
        assert_eq!(answered, at == LOAD.len(), "{at}");
    }
    let mut client = scene.client();
    let listing: ModuleListing = request(&mut client, &Request::List {});
    assert_eq!(listing.modules.len(), 1);
    let unloaded: ModuleName = request(&mut client, &Request::Unload { name: "greet".into(), wait: 5, force: false });
    assert_eq!(unloaded.module, "greet");
}

#[test]
fn who_does_not_listen_keeps_nobody_else_waiting() {
    let scene = Scene::new();
    let mut deaf = scene.raw();
    let greet = File::open(object("greet")).unwrap();
    // Each parameter causes a warning: together far more bytes than a socket buffers.
    let params: Vec<String> = (0..6000).map(|at| format!("\"p{at}\"")).collect();
    let load = format!("{{\"id\":1,\"op\":\"load\",\"files\":[\"greet.o\"],\"params\":[{}]}}\n", params.join(","));
    assert!(load.len() < 65_536);
    let begun = Instant::now();
    deaf.send(load.as_bytes(), &[greet.as_fd()]);
    let mut client = scene.client();
    let state = |client: &mut Client| {
        let listing: ModuleListing = request(client, &Request::List {});
        listing.modules.into_iter().map(|entry| format!("{} {}", entry.name, entry.state)).collect::<Vec<_>>()
    };
    until("it is being told", || state(&mut scene.client()) == ["greet COMING"]);
    // All other clients are served meanwhile: they list, load, call and unload.
    let plain =
        object_from_text("aside", Language::C, "int aside(void) { return 7; }", Compiler::Cc, &["-O2", "-fPIC"]);
    let plain = File::open(plain.unwrap()).unwrap();
    let mut rounds = 0;
    while state(&mut client) == ["greet COMING"] {
        let load = Request::Load { files: vec!["aside.o".into()], name: None, params: vec![], want: vec![] };
        let _: ModuleName = client.request(&load, &[plain.as_fd()], |_, _| {}).unwrap();
        let _: ModuleName = request(&mut client, &Request::Unload { name: "aside".into(), wait: 0, force: false });
        rounds += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(rounds > 0);
    // The client counts as gone, and its load is completed.
    assert!(begun.elapsed() >= Duration::from_secs(9));
    until("the load is completed", || state(&mut scene.client()) == ["greet LIVE"]);
    // The remaining bytes end within a line or after one.
    assert!(deaf.stream.read_to_end(&mut Vec::new()).is_ok());
}

/// A module whose `wait_for` returns once a file exists.
const WAITER: &str = "
#include <modload/module.h>
int access(const char *path, int mode);
int usleep(unsigned int microseconds);
static char *path = \"\";
module_param(path, charp, 0644);
int wait_for(void);
int wait_for(void)
{
	while (path[0] != '\\0' && access(path, 0) != 0)
		usleep(1000);
	return 42;
}
";

#[test]
fn an_unload_whose_client_has_gone_does_not_happen_later() {
    let scene = Scene::new();
    let object = object_from_text("awaited", Language::C, WAITER, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let go = scene.dir.path().join("go");
    let load = Request::Load {
        files: vec!["awaited.o".into()],
        name: None,
        params: vec![format!("path={}", go.display())],
        want: vec![],
    };
    let _: ModuleName = scene.client().request(&load, &[File::open(object).unwrap().as_fd()], |_, _| {}).unwrap();
    let entry = || request::<ModuleEntry>(&mut scene.client(), &Request::Info { name: "awaited".into() });
    std::thread::scope(|scope| {
        let mut caller = scene.raw();
        let called = scope.spawn(move || {
            caller.send(b"{\"id\":1,\"op\":\"call\",\"symbol\":\"wait_for\"}\n", &[]);
            answer(&mut caller)
        });
        until("the call is under way", || entry().references == 1);
        let mut interrupted = scene.raw();
        let wait = format!("{{\"id\":1,\"op\":\"unload\",\"name\":\"awaited\",\"wait\":{}}}\n", u64::MAX);
        interrupted.send(wait.as_bytes(), &[]);
        assert_eq!(interrupted.line().unwrap()["event"]["event"], "waiting");
        // All places but two are taken, so a free place is that of the waiting client.
        let is_free = || Client::connect(&scene.socket()).is_ok();
        let mut others = Vec::new();
        while others.len() < 62 {
            others.extend(Client::connect(&scene.socket()));
        }
        assert!(!is_free());
        drop(interrupted);
        until("nobody waits any more", is_free);
        drop(others);
        fs::write(&go, "").unwrap();
        assert_eq!(called.join().unwrap()["ok"]["result"], 42);
    });
    assert_eq!(entry().state.to_string(), "LIVE");
}

#[test]
fn who_has_the_socket_and_says_nothing_is_no_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent");
    let _listens = UnixListener::bind(&path).unwrap();
    let refused = Client::connect_within(&path, Duration::from_millis(50)).unwrap_err();
    assert!(
        refused.to_string().ends_with(
            "silent: no greeting within 0 s: either this socket is not a host's, or the host is still loading its \
                 first modules; try again later"
        ),
        "{refused}"
    );
}

#[test]
fn what_one_request_cannot_carry_is_refused_and_the_client_goes_on() {
    let scene = Scene::new();
    let mut client = scene.client();
    let null = File::open("/dev/null").unwrap();
    for count in [65, 253, 254, 300] {
        let files = vec!["null.o".to_owned(); count];
        let load = Request::Load { files, name: None, params: vec![], want: vec![] };
        let descriptors: Vec<BorrowedFd<'_>> = vec![null.as_fd(); count];
        let refused = client.request::<ModuleName>(&load, &descriptors, |_, _| {}).unwrap_err();
        assert!(matches!(refused, ClientError::TooManyFiles(given) if given == count), "{refused}");
    }
    let listing: ModuleListing = request(&mut client, &Request::List {});
    assert!(listing.modules.is_empty());
    // The server refuses a line that is too long, and closes the connection while the client still writes.
    let long = Request::Info { name: "x".repeat(10 << 20) };
    let refused = client.request::<ModuleEntry>(&long, &[], |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains("a line of more than 65536 bytes"), "{refused}");
}
