//! Ten thousand invalid requests, the same ones in every run. They must not change the host.

mod scene;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use modload_control::protocol::{ModuleListing, ModuleName, Request, TraceRequest};
use modload_fixtures::until;
use scene::{Scene, object};

const REQUESTS: usize = 10_000;

/// A random number generator with the same numbers in every run: xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Valid requests whose names match nothing: no mutation of them can hit the only loaded module.
const VALID: [&str; 10] = [
    r#"{"id":1,"op":"ping"}"#,
    r#"{"id":2,"op":"list","modload":1}"#,
    r#"{"id":3,"op":"info","name":"nobody"}"#,
    r#"{"id":4,"op":"load","files":["nobody.o"],"params":["a=1"]}"#,
    r#"{"id":5,"op":"unload","name":"nobody","wait":1,"force":true}"#,
    r#"{"id":6,"op":"params","name":"nobody"}"#,
    r#"{"id":7,"op":"set_param","name":"nobody","param":"a","value":"1"}"#,
    r#"{"id":8,"op":"call","symbol":"nobody","type":"i32","arguments":[1,2]}"#,
    r#"{"id":9,"op":"trace","patterns":["greet:*","!*x"],"mode":"graph","buffer":65536,"seconds":1}"#,
    r#"{"id":10,"op":"traceable","patterns":["greet:*"]}"#,
];

const WRONG: [&str; 12] = [
    "",
    "null",
    "[]",
    r#""list""#,
    r#"{"op":"list"}"#,
    r#"{"id":-1,"op":"list"}"#,
    r#"{"id":1}"#,
    r#"{"id":1,"op":"list","modload":2}"#,
    r#"{"id":1,"op":"load","files":[]}"#,
    r#"{"id":1,"op":"load","files":["a.o","b.o"]}"#,
    r#"{"id":1,"op":"call","symbol":"greet_count","arguments":[1,2,3,4,5,6,7]}"#,
    r#"{"id":1,"op":"unload","name":"greet","wait":-1}"#,
];

fn mutated(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = chance.of(&VALID).as_bytes().to_vec();
    for _ in 0..=chance.below(4) {
        // An insertion, if no bytes are left.
        bytes.extend(bytes.is_empty().then_some(b'{'));
        let at = chance.below(bytes.len());
        match chance.below(4) {
            0 => bytes[at] = chance.byte(),
            1 => bytes.insert(at, *chance.of(b"{}[]\",:\\0\n\xff")),
            2 => drop(bytes.remove(at)),
            _ => bytes.truncate(at + 1),
        }
    }
    bytes
}

fn line(chance: &mut Chance) -> Vec<u8> {
    match chance.below(100) {
        0..50 => mutated(chance),
        50..60 => (0..chance.below(300)).map(|_| chance.byte()).collect(),
        60..70 => chance.of(&WRONG).as_bytes().to_vec(),
        70..75 => [r#"{"id":1,"op":"#.as_bytes(), &vec![b'['; chance.below(50_000)]].concat(),
        75 => vec![b'x'; 70_000],
        _ => chance.of(&VALID).as_bytes().to_vec(),
    }
}

/// Returns descriptors of every kind that is not a module file.
fn descriptors(dir: &std::path::Path) -> Vec<OwnedFd> {
    fs::write(dir.join("text.o"), "no module").unwrap();
    let (socket, _) = UnixStream::pair().unwrap();
    let (pipe, _keeps_no_end) = std::io::pipe().unwrap();
    let path = rustix::fs::open(dir.join("text.o"), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    vec![
        File::open(dir.join("text.o")).unwrap().into(),
        File::open(dir).unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
        File::options().append(true).open(dir.join("text.o")).unwrap().into(),
        socket.into(),
        pipe.into(),
        path,
    ]
}

/// Returns the number of entries in a folder of /proc/self.
fn count(what: &str) -> usize {
    fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

#[test]
fn ten_thousand_malformed_requests_change_nothing() {
    let scene = Scene::new();
    let threads = count("task");
    let descriptors = descriptors(scene.dir.path());
    let greet = File::open(object("greet")).unwrap();
    let load =
        Request::Load { files: vec!["greet.o".into()], name: None, params: vec!["times=3".into()], want: vec![] };
    let loaded: ModuleName = scene.client().request(&load, &[greet.as_fd()], |_, _| {}).unwrap();
    assert_eq!(loaded.module, "greet");
    // The trampoline of a traced function stays with its module, so it must exist before counting.
    let (stop, _stopper) = UnixStream::pair().unwrap();
    let asked = TraceRequest { seconds: Some(0), ..TraceRequest::default() };
    scene.client().trace(&asked, stop, |_| ControlFlow::Continue(())).unwrap();
    let list = || scene.client().request::<ModuleListing>(&Request::List {}, &[], |_, _| {}).unwrap();
    let before = list();
    // The sessions of earlier clients end at their own pace.
    until("their threads are gone", || count("task") == threads);
    let open = count("fd");

    let mut chance = Chance(0x6d6f_646c_6f61_6421);
    let mut raw = scene.raw();
    let (mut refused, mut closed) = (0, 0);
    for number in 0..REQUESTS {
        let mut bytes = line(&mut chance);
        let with = match chance.below(100) {
            0..70 => 0,
            70..99 => 1 + chance.below(3),
            _ => 60 + chance.below(10),
        };
        let with: Vec<BorrowedFd<'_>> = (0..with).map(|_| chance.of(&descriptors).as_fd()).collect();
        if chance.below(20) == 0 {
            // A client that closes the connection within a line, or just after one.
            raw.send(&bytes, &with);
            raw = scene.raw();
            continue;
        }
        bytes.push(b'\n');
        let id = 1_000_000 + number;
        let ping = format!("{{\"id\":{id},\"op\":\"ping\"}}\n");
        let sent = raw.send(&bytes, &with) && raw.send(ping.as_bytes(), &[]);
        loop {
            match raw.line() {
                Some(line) if line["id"] == id => {
                    assert_eq!(line["ok"]["modload"], 1, "{line}");
                    break;
                }
                Some(line) => {
                    let kind = line["error"]["kind"].as_str().unwrap_or("none");
                    assert_ne!(kind, "internal", "{}", String::from_utf8_lossy(&bytes));
                    refused += usize::from(line["error"].is_object());
                }
                None => {
                    assert!(!sent || bytes.len() > 65_536 || with.len() > 64, "{}", String::from_utf8_lossy(&bytes));
                    closed += 1;
                    raw = scene.raw();
                    break;
                }
            }
        }
    }
    assert!(refused > REQUESTS / 2 && closed > 50, "{refused} refused, {closed} closed");
    drop(raw);
    assert_eq!(list(), before);
    until("all threads are gone", || count("task") == threads);
    until("all descriptors are closed", || count("fd") == open);
    let unload = Request::Unload { name: "greet".into(), wait: 0, force: false };
    let _: ModuleName = scene.client().request(&unload, &[], |_, _| {}).unwrap();
    assert!(list().modules.is_empty());
}
