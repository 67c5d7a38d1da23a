//! Which requests and clients the server refuses, which socket files it replaces, and how it stops.

mod scene;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use modload_control::protocol::{Called, ModuleEntry, ModuleListing, ModuleName, ParamEntry, Request, ResultType};
use modload_control::{Client, ClientError, ListenError, Listener, RequestRefused, ServeOutcome};
use modload_fixtures::until;
use modload_fixtures::{Compiler, Language, object_from_text};
use scene::{Raw, Scene, object};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Returns the answer to a line, after any events.
fn ask(raw: &mut Raw, line: &str, descriptors: &[BorrowedFd<'_>]) -> Value {
    raw.send(format!("{line}\n").as_bytes(), descriptors);
    loop {
        let line = raw.line().expect("an answer");
        if line["event"].is_null() {
            return line;
        }
    }
}

/// Returns the kind of the refusal of a line.
fn kind(raw: &mut Raw, line: &str, descriptors: &[BorrowedFd<'_>]) -> String {
    let answer = ask(raw, line, descriptors);
    answer["error"]["kind"].as_str().unwrap_or_else(|| panic!("{line}: {answer}")).to_owned()
}

fn request<A: DeserializeOwned>(client: &mut Client, request: &Request) -> Result<A, RequestRefused> {
    match client.request(request, &[], |_, _| {}) {
        Ok(answer) => Ok(answer),
        Err(ClientError::Refused(refused)) => Err(refused),
        Err(error) => panic!("{error}"),
    }
}

fn load(client: &mut Client, name: &str, params: &[&str]) -> Result<String, RequestRefused> {
    load_file(client, &object(name), params)
}

fn load_file(client: &mut Client, path: &std::path::Path, params: &[&str]) -> Result<String, RequestRefused> {
    let file = File::open(path).unwrap();
    let params = params.iter().map(|&param| param.to_owned()).collect();
    let load = Request::Load { files: vec![path.display().to_string()], name: None, params, want: vec![] };
    match client.request::<ModuleName>(&load, &[file.as_fd()], |_, _| {}) {
        Ok(ModuleName { module }) => Ok(module),
        Err(ClientError::Refused(refused)) => Err(refused),
        Err(error) => panic!("{error}"),
    }
}

fn call(symbol: &str, arguments: &[u64]) -> Request {
    Request::Call { symbol: symbol.into(), module: None, result: ResultType::I32, arguments: arguments.to_vec() }
}

fn unload(name: &str, wait: u64) -> Request {
    Request::Unload { name: name.into(), wait, force: false }
}

fn names(client: &mut Client) -> Vec<String> {
    let listing: ModuleListing = request(client, &Request::List {}).unwrap();
    listing.modules.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn requests_do_what_they_say() {
    let scene = Scene::new();
    let mut client = scene.client();
    assert_eq!(load(&mut client, "greet", &["times=3"]).as_deref(), Ok("greet"));
    assert_eq!(load(&mut client, "guest", &[]).as_deref(), Ok("guest"));
    let called: Called = request(&mut client, &call("greet_hello", &[])).unwrap();
    assert_eq!(called, Called { module: "greet".into(), result: 3.into() });
    let letter: Called = request(&mut client, &call("greet_letter", &[u64::MAX])).unwrap();
    assert_eq!(letter.result, Value::from(-1));
    let set = |param: &str, value: &str| Request::SetParam {
        name: "greet".into(),
        param: param.into(),
        value: Some(value.into()),
    };
    let param: ParamEntry = request(&mut client, &set("times", "5")).unwrap();
    assert_eq!((param.value.as_deref(), param.perm.as_str()), (Some("5"), "0644"));
    let entry: ModuleEntry = request(&mut client, &Request::Info { name: "greet".into() }).unwrap();
    assert_eq!((entry.used_by, entry.references), (vec!["guest".to_owned()], 0));
    for (wrong, kind, says) in [
        (set("who", "me"), "param", "0444"),
        (set("times", "many"), "param", "\"many\" is not of type int"),
        (set("nope", "1"), "param", "no parameter \"nope\""),
        (Request::Params { name: "nobody".into() }, "no_module", "nobody: no module"),
        (call("nothing", &[]), "no_symbol", "\"nothing\""),
        (call("greet_hello", &[0; 7]), "call", "six at most"),
        (unload("greet", 0), "in_use", "in use by guest"),
        (unload("nobody", 0), "no_module", "nobody: no module"),
    ] {
        let refused = request::<Value>(&mut client, &wrong).unwrap_err();
        assert!(refused.kind == kind && refused.message.contains(says), "{wrong:?}: {refused:?}");
    }
    let refused = load(&mut client, "missing", &[]).unwrap_err();
    assert_eq!((refused.kind.as_str(), &refused.data["stage"]), ("load", &Value::from("resolve")));
    assert!(refused.data["unresolved"].is_array(), "{refused:?}");
    for name in ["guest", "greet"] {
        let _: ModuleName = request(&mut client, &unload(name, 0)).unwrap();
    }
    assert_eq!(names(&mut client), [""; 0]);
}

#[test]
fn a_load_tells_its_own_events_in_order() {
    let scene = Scene::new();
    let file = File::open(object("greet")).unwrap();
    let load = Request::Load { files: vec!["greet.o".into()], name: None, params: vec!["nope=1".into()], want: vec![] };
    let mut told = Vec::new();
    let event = |event: &Value, text: &str| {
        assert_eq!(event["seq"], told.len() + 1);
        told.push(text.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
    };
    let _: ModuleName = scene.client().request(&load, &[file.as_fd()], event).unwrap();
    for line in ["state COMING", "warning unknown parameter \"nope\" ignored", "init returned 0", "state LIVE"] {
        assert!(told.contains(&line.to_owned()), "{line}: {told:?}");
    }
    assert!(told[0].starts_with("stage validate") && told.last().unwrap() == "stage drop_init", "{told:?}");
}

#[test]
fn what_is_wrong_with_a_request_has_a_name_and_the_connection_goes_on() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    let null = File::open("/dev/null").unwrap();
    let deep = format!(r#"{{"id":1,"op":{}"#, "[".repeat(10_000));
    for (line, descriptors, expected) in [
        ("", 0, "malformed"),
        ("{", 0, "malformed"),
        (deep.as_str(), 0, "malformed"),
        ("[1]", 0, "malformed"),
        (r#"{"op":"list"}"#, 0, "no_id"),
        (r#"{"id":"1","op":"list"}"#, 0, "no_id"),
        (r#"{"id":1,"op":"list","modload":2}"#, 0, "version"),
        (r#"{"id":1}"#, 0, "unknown_op"),
        (r#"{"id":1,"op":"insmod"}"#, 0, "unknown_op"),
        (r#"{"id":1,"op":"list","all":true}"#, 0, "bad_request"),
        (r#"{"id":1,"op":"info"}"#, 0, "bad_request"),
        (r#"{"id":1,"op":"unload","name":"a","wait":"1"}"#, 0, "bad_request"),
        (r#"{"id":1,"op":"load","files":["a.o"]}"#, 0, "descriptors"),
        (r#"{"id":1,"op":"load","files":["a.o"]}"#, 2, "descriptors"),
        (r#"{"id":1,"op":"list"}"#, 1, "descriptors"),
        (r#"{"id":1,"op":"list"}"#, 64, "descriptors"),
        (r#"{"id":1,"op":"load","files":[]}"#, 0, "bad_request"),
        (r#"{"id":1,"op":"load","files":["a.o","b.o"]}"#, 2, "file"),
    ] {
        let descriptors = vec![null.as_fd(); descriptors];
        assert_eq!(kind(&mut raw, line, &descriptors), expected, "{line}");
    }
    raw.send(b"{\"id\":1,\"op\":\"\xff\"}\n", &[]);
    assert_eq!(raw.line().unwrap()["error"]["kind"], "not_utf8");
    // In pieces, and two lines at once.
    for piece in ["{\"id\":7,", "\"op\":\"ping\"}", "\n{\"id\":8,\"op\":\"ping\"}\n"] {
        raw.send(piece.as_bytes(), &[]);
    }
    for id in [7, 8] {
        assert_eq!(raw.line().unwrap()["id"], id);
    }
}

#[test]
fn a_client_that_says_too_much_or_too_slowly_is_closed() {
    let scene = Scene::new();
    let mut long = scene.raw();
    long.send(&[b' '; 65_537], &[]);
    assert_eq!(long.line().unwrap()["error"]["kind"], "line_too_long");
    assert_eq!(long.line(), None);
    let mut just = scene.raw();
    let ping = r#"{"id":1,"op":"ping"}"#;
    assert_eq!(ask(&mut just, &(ping.to_owned() + &" ".repeat(65_536 - ping.len())), &[])["id"], 1);
    let null = File::open("/dev/null").unwrap();
    let mut many = scene.raw();
    assert_eq!(kind(&mut many, r#"{"id":1,"op":"list"}"#, &[null.as_fd(); 65]), "too_many_descriptors");
    assert_eq!(many.line(), None);
    // A client that only waits may do so for any time.
    let mut idle = scene.raw();
    let mut slow = scene.raw();
    let begun = Instant::now();
    slow.send(b"{", &[]);
    assert_eq!(slow.line().unwrap()["error"]["kind"], "line_too_slow");
    assert!(begun.elapsed() >= Duration::from_secs(10));
    assert_eq!(slow.line(), None);
    assert_eq!(ask(&mut idle, r#"{"id":1,"op":"ping"}"#, &[])["id"], 1);
}

#[test]
fn a_descriptor_that_is_no_file_to_read_is_refused_without_waiting() {
    let scene = Scene::new();
    let path = scene.dir.path().join("file.o");
    fs::write(&path, "no module").unwrap();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let opaque = rustix::fs::open(&path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let kinds: [(OwnedFd, &str); 6] = [
        (pipe.into(), "is not a regular file"),
        (File::open("/dev/zero").unwrap().into(), "is not a regular file"),
        (File::open(scene.dir.path()).unwrap().into(), "is not a regular file"),
        (File::options().write(true).open(&path).unwrap().into(), "not open for reading"),
        (opaque, "not open for reading"),
        (File::open(&path).unwrap().into(), "not a relocatable ELF object"),
    ];
    let mut raw = scene.raw();
    for (descriptor, says) in &kinds {
        let answer = ask(&mut raw, r#"{"id":1,"op":"load","files":["a\u001b.o"]}"#, &[descriptor.as_fd()]);
        let message = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("{says}: {answer}"));
        assert!(message.contains(says) && message.starts_with("a\\u{1b}.o: "), "{says}: {message}");
    }
}

#[test]
fn there_is_an_end_to_how_many_are_served() {
    let scene = Scene::new();
    let mut clients: Vec<Raw> = (0..64).map(|_| scene.raw()).collect();
    let refused = Client::connect(&scene.socket()).unwrap_err().to_string();
    assert!(refused.contains("64 clients already"), "{refused}");
    assert_eq!(ask(&mut clients[63], r#"{"id":1,"op":"ping"}"#, &[])["id"], 1);
    clients.pop();
    until("there is room again", || Client::connect(&scene.socket()).is_ok());
}

/// A module whose `wait_for` returns once a file exists. Its init waits too, if a parameter names the file.
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

fn waiter() -> std::path::PathBuf {
    object_from_text("waiter", Language::C, WAITER, Compiler::Cc, &["-O2", "-fPIC"]).unwrap()
}

#[test]
fn who_waits_for_an_unload_is_told_for_whom_and_force_does_not_wait() {
    let scene = Scene::new();
    let mut client = scene.client();
    let path = scene.dir.path().join("go");
    let param = format!("path={}", path.display());
    let name = load_file(&mut client, &waiter(), &[&param]).unwrap();
    std::thread::scope(|scope| {
        let mut caller = scene.client();
        let called = scope.spawn(move || request::<Called>(&mut caller, &call("wait_for", &[])));
        until("the call is under way", || {
            let entry: ModuleEntry = request(&mut scene.client(), &Request::Info { name: name.clone() }).unwrap();
            entry.references == 1
        });
        let refused = request::<ModuleName>(&mut client, &unload(&name, 0)).unwrap_err();
        assert_eq!((refused.kind.as_str(), &refused.data["references"]), ("in_use", &Value::from(1)));
        // The waiting client receives an event, and the event ends the waiting.
        let go = |event: &Value, _: &str| {
            if event["event"] == "waiting" {
                assert_eq!(event["references"], 1);
                File::create(&path).unwrap();
            }
        };
        let unloaded: ModuleName = client.request(&unload(&name, 60), &[], go).unwrap();
        assert_eq!(unloaded.module, name);
        assert_eq!(called.join().unwrap().unwrap().result, Value::from(42));
        fs::remove_file(&path).unwrap();

        // An unload by force: the running call continues in memory that is kept for it.
        load_file(&mut client, &waiter(), &[&param]).unwrap();
        let mut caller = scene.client();
        let called = scope.spawn(move || request::<Called>(&mut caller, &call("wait_for", &[])));
        until("the call is under way", || {
            let entry: ModuleEntry = request(&mut scene.client(), &Request::Info { name: name.clone() }).unwrap();
            entry.references == 1
        });
        let by_force = Request::Unload { name: name.clone(), wait: 0, force: true };
        let _: ModuleName = request(&mut client, &by_force).unwrap();
        let listing: ModuleListing = request(&mut client, &Request::List {}).unwrap();
        assert_eq!((listing.modules.len(), listing.taint.contains('R')), (0, true));
        File::create(&path).unwrap();
        assert_eq!(called.join().unwrap().unwrap().result, Value::from(42));
    });
}

#[test]
fn a_server_that_stops_finishes_what_is_under_way_and_begins_nothing() {
    let mut scene = Scene::new();
    let mut client = scene.client();
    let path = scene.dir.path().join("go");
    load_file(&mut client, &waiter(), &[&format!("path={}", path.display())]).unwrap();
    let mut idle = scene.raw();
    let mut caller = scene.client();
    let called = std::thread::spawn(move || request::<Called>(&mut caller, &call("wait_for", &[])));
    until("the call is under way", || {
        let listing: ModuleListing = request(&mut scene.client(), &Request::List {}).unwrap();
        listing.modules[0].references == 1
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Connections of clients that only wait are closed. Then the running request may end.
            assert_eq!(idle.line(), None);
            File::create(&path).unwrap();
        });
        assert_eq!(scene.stop(), Some(ServeOutcome { unfinished: 0 }));
    });
    assert_eq!(called.join().unwrap().unwrap().result, Value::from(42));
    assert!(!scene.socket().exists());
}

#[test]
fn a_socket_is_private_and_only_what_nobody_answers_on_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(Listener::bind(&path), Err(ListenError::Served(_))));
    // Another socket has this path now, so the listener must not remove it.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
    assert!(matches!(Listener::bind(&path), Err(ListenError::Served(_))), "it answers, without a lock");
    drop(other);
    drop(Listener::bind(&path).unwrap());
    assert!(!path.exists());
    File::create(&path).unwrap().write_all(b"mine").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::Occupied(_))));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::Occupied(_))));
}

#[test]
fn of_two_servers_that_race_one_serves() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for _ in 0..50 {
        // The file that a killed server leaves behind.
        drop(UnixListener::bind(&path).unwrap());
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path).ok())).collect();
            racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(listeners.len(), 1);
        assert!(UnixStream::connect(&path).is_ok());
    }
}

#[test]
fn what_is_inherited_must_listen() {
    let dir = tempfile::tempdir().unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let file = File::open("/dev/null").unwrap();
    for wrong in [OwnedFd::from(stream), file.into()] {
        assert!(matches!(Listener::inherited(wrong), Err(ListenError::NotASocket)));
    }
    let path = dir.path().join("s");
    drop(Listener::inherited(UnixListener::bind(&path).unwrap().into()).unwrap());
    assert!(path.exists(), "it is somebody else's");
}

#[test]
fn clients_that_do_everything_at_once_leave_nothing() {
    let scene = Scene::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let mut client = scene.client();
            scope.spawn(move || {
                for round in 0..25 {
                    let loaded = load(&mut client, "greet", &["times=2"]);
                    let kind = loaded.as_ref().err().map(|refused| refused.kind.as_str());
                    assert!([None, Some("load")].contains(&kind), "{loaded:?}");
                    for wish in [call("greet_hello", &[]), Request::Info { name: "greet".into() }, Request::List {}] {
                        if let Err(refused) = request::<Value>(&mut client, &wish) {
                            assert!(["no_symbol", "no_module"].contains(&refused.kind.as_str()), "{refused:?}");
                        }
                    }
                    if (number + round) % 2 == 0 {
                        let unloaded = request::<ModuleName>(&mut client, &unload("greet", 5));
                        let kind = unloaded.as_ref().err().map(|refused| refused.kind.as_str());
                        assert!([None, Some("no_module"), Some("not_live")].contains(&kind), "{unloaded:?}");
                    }
                }
            });
        }
    });
    let mut client = scene.client();
    if !names(&mut client).is_empty() {
        let _: ModuleName = request(&mut client, &unload("greet", 5)).unwrap();
    }
    let listing: ModuleListing = request(&mut client, &Request::List {}).unwrap();
    assert!(listing.modules.is_empty() && listing.taint.is_empty(), "{listing:?}");
}
