//! `modhost serve` and its clients, in processes of their own: how clients affect each other, and how the server ends.

mod child;
mod waiting;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use serde_json::Value;
use tempfile::TempDir;

use child::Guard;
use waiting::until;

fn object(name: &str) -> String {
    let path = Fixture::new(name).object(Compiler::Cc, &["-O2", "-fPIC", "-fvisibility=hidden"]).unwrap();
    path.display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A host in a process of its own, and a folder for it.
struct Served {
    server: Guard,
    dir: TempDir,
}

impl Served {
    fn new(arguments: &[&str]) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(&dir.path().join("host.sock"), arguments);
        Served { server, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("host.sock")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("MODLOAD_HOST", self.socket()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn modload(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_modload"), arguments).output().unwrap()
    }

    fn modunload(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_modunload"), arguments).output().unwrap()
    }

    fn modhost(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_modhost"), arguments).output().unwrap()
    }

    /// Returns names and states.
    fn list(&self) -> Vec<String> {
        let output = self.modhost(&["list", "--format", "json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
        let modules = listing["modules"].as_array().unwrap();
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        modules.iter().map(|entry| format!("{} {}", word(&entry["name"]), word(&entry["state"]))).collect()
    }

    /// Stops the server with SIGTERM, as an operator does.
    fn stop(self) -> (std::process::ExitStatus, String) {
        self.server.signal("TERM");
        let socket = self.socket();
        let ended = self.server.ended();
        assert!(!socket.exists(), "the socket is left");
        ended
    }
}

/// Starts a server, and waits until it is ready.
fn serve(socket: &Path, arguments: &[&str]) -> Guard {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modhost"));
    command.arg("serve").arg("--socket").arg(socket).args(arguments);
    ready(&mut command, &format!("listening on {}\n", socket.display()))
}

fn ready(command: &mut Command, says: &str) -> Guard {
    let mut server = Guard(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line != says {
        panic!("{line:?}: {:?}", server.ended());
    }
    server
}

/// Returns the output of a command that must succeed.
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    text(&output.stdout)
}

/// Returns the error message of a command that must be refused.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

/// A module whose init creates a file and then waits for another file. Its exit writes a line.
const SLOW: &str = "
#include <modload/module.h>
int access(const char *path, int mode);
int open(const char *path, int flags, ...);
int close(int descriptor);
int usleep(unsigned int microseconds);
static char *begun = \"\", *go = \"\";
module_param(begun, charp, 0444);
module_param(go, charp, 0444);
static int __init slow_init(void)
{
	close(open(begun, 0101, 0600));
	while (access(go, 0) != 0)
		usleep(1000);
	return 0;
}
module_init(slow_init);
static void __exit slow_exit(void)
{
}
module_exit(slow_exit);
";

/// Returns the object, and parameters that name files of a folder.
fn slow(dir: &Path) -> (String, [String; 2]) {
    let object = object_from_text("slow", Language::C, SLOW, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let param = |name: &str| format!("{name}={}", dir.join(name).display());
    (object.display().to_string(), [param("begun"), param("go")])
}

#[test]
fn modules_are_operated_from_other_processes() {
    let served = Served::new(&[&object("greet"), "times=3", "--", &object("guest")]);
    assert_eq!(served.list(), ["greet LIVE", "guest LIVE"]);
    assert_eq!(
        done(&served.modload(&["--call", "greet_hello", "--call", "greet_letter=-1"])),
        "greet_hello() = 3\ngreet_letter(-1) = -1\n"
    );
    assert_eq!(done(&served.modhost(&["params", "greet", "times=5"])), "times (int, 0644) = 5\n");
    assert_eq!(done(&served.modload(&["--call", "greet_hello"])), "greet_hello() = 5\n");
    let traced = done(&served.modload(&["--trace", "--call", "ro_limit", &object("ro_after_init"), "limit=7"]));
    let states: Vec<&str> = traced.lines().filter_map(|line| line.split("state     ").nth(1)).collect();
    assert_eq!((states, traced.lines().last()), (vec!["UNFORMED", "COMING", "LIVE"], Some("ro_limit() = 9")));
    assert_eq!(served.list().len(), 3);
    let said = refused(&served.modunload(&["greet", "nobody", "guest"]));
    assert_eq!(said, "modunload: greet: in use by guest\nmodunload: nobody: no module of this name is loaded\n");
    let said = refused(&served.modhost(&["params", "greet", "who=me"]));
    assert!(said.contains("permission 0444"), "{said}");
    let said = refused(&served.modload(&[&object("greet")]));
    assert!(said.ends_with("greet: reserve: a module of this name is already loaded\n"), "{said}");
    done(&served.modunload(&["greet"]));
    assert_eq!(served.list().len(), 1);
    let (status, stderr) = served.stop();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_client_that_is_killed_in_mid_load_harms_nobody() {
    let served = Served::new(&[]);
    let (object, params) = slow(served.dir.path());
    let mut load = served.command(env!("CARGO_BIN_EXE_modload"), &["--trace", &object, &params[0], &params[1]]);
    let client = Guard(load.spawn().unwrap());
    until("init is under way", || served.dir.path().join("begun").exists());
    assert_eq!(served.list(), ["slow COMING"]);
    client.signal("KILL");
    assert_eq!(client.ended().0.signal(), Some(9));
    // Other clients are served while the load continues.
    done(&served.modload(&[&self::object("greet")]));
    assert_eq!(served.list(), ["slow COMING", "greet LIVE"]);
    fs::write(served.dir.path().join("go"), "").unwrap();
    until("the load is completed", || served.list() == ["slow LIVE", "greet LIVE"]);
    done(&served.modunload(&["slow", "greet"]));
    assert_eq!(served.stop().0.code(), Some(0));
}

#[test]
fn of_two_clients_that_load_one_name_one_does() {
    let served = Served::new(&[]);
    let (object, params) = slow(served.dir.path());
    let load = || served.command(env!("CARGO_BIN_EXE_modload"), &[&object, &params[0], &params[1]]).spawn().unwrap();
    let (first, second) = (Guard(load()), Guard(load()));
    until("one is under way", || served.dir.path().join("begun").exists());
    assert_eq!(served.list(), ["slow COMING"]);
    fs::write(served.dir.path().join("go"), "").unwrap();
    let mut ends = [first.ended(), second.ended()].map(|(status, stderr)| (status.code().unwrap(), stderr));
    ends.sort();
    assert_eq!(ends[0], (0, String::new()));
    assert!(ends[1].0 == 1 && ends[1].1.contains("already loaded"), "{ends:?}");
    assert_eq!(served.list(), ["slow LIVE"]);
    // Two concurrent unloads: one succeeds.
    let unloads = [served.modunload(&["slow"]), served.modunload(&["slow"])].map(|output| output.status.code());
    assert_eq!(unloads, [Some(0), Some(1)]);
    assert!(served.list().is_empty());
}

#[test]
fn a_client_of_another_user_is_refused() {
    if !is_root() {
        // Written past the test harness's capture, so that the skipped test is visible.
        writeln!(std::io::stderr(), "SKIPPED a_client_of_another_user_is_refused: only root can be another user")
            .unwrap();
        return;
    }
    let served = Served::new(&[&object("greet")]);
    // The file permissions admit other users, so that the server itself has to refuse them.
    fs::set_permissions(served.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(served.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let program = served.dir.path().join("modhost");
    fs::copy(env!("CARGO_BIN_EXE_modhost"), &program).unwrap();
    let mut list = served.command(&program.display().to_string(), &["list"]);
    list.uid(65534).gid(65534);
    let mut listed = None;
    // A child that another test was forking during the copy has the file open for writing until it runs its program.
    until("the copy can be run", || match list.output() {
        Err(busy) if busy.kind() == std::io::ErrorKind::ExecutableFileBusy => false,
        output => listed.replace(output.unwrap()).is_none(),
    });
    let said = refused(&listed.unwrap());
    assert!(said.contains("user 65534 may not operate this host"), "{said}");
    // A client of the same user still gets the right list.
    assert_eq!(served.list(), ["greet LIVE"]);
}

/// Returns whether this process may become another user.
fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

#[test]
fn sigterm_unloads_in_mirror_order() {
    // Each module writes a line to a file that outlives the host when it is unloaded.
    const TELLING: &str = "
#include <modload/module.h>
int open(const char *path, int flags, ...);
long write(int descriptor, const void *bytes, unsigned long count);
int close(int descriptor);
static char *log = \"\";
module_param(log, charp, 0444);
static int __init telling_init(void)
{
	return 0;
}
module_init(telling_init);
static void __exit telling_exit(void)
{
	int descriptor = open(log, 02101, 0600);
	write(descriptor, LETTER, 1);
	close(descriptor);
}
module_exit(telling_exit);
";
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut arguments = Vec::new();
        for letter in ["a", "b", "c"] {
            let source = format!("#define LETTER \"{letter}\"\n{TELLING}");
            let name = format!("telling_{letter}");
            let object = object_from_text(&name, Language::C, &source, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
            arguments.extend([object.display().to_string(), format!("log={}", log.display()), "--".into()]);
        }
        arguments.pop();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let served = Served::new(&arguments);
        served.server.signal(signal);
        assert_eq!(served.server.ended().0.code(), Some(0));
        assert_eq!(fs::read_to_string(log).unwrap(), "cba");
    }
}

#[test]
fn what_is_held_when_it_stops_is_named() {
    let served = Served::new(&[&object("greet")]);
    let (object, params) = slow(served.dir.path());
    let load = served.command(env!("CARGO_BIN_EXE_modload"), &[&object, &params[0], &params[1]]).spawn().unwrap();
    let _client = Guard(load);
    until("init is under way", || served.dir.path().join("begun").exists());
    // The server waits for the running request, but not for ever.
    let begun = Instant::now();
    let (status, stderr) = served.stop();
    assert!(begun.elapsed() >= Duration::from_secs(10));
    assert_eq!(status.code(), Some(1));
    let expected = "modhost: stopped, but slow: it is COMING, and only a LIVE module can be unloaded (1 client's request \
                    did not end)\n";
    assert_eq!(stderr, expected);
}

#[test]
fn a_load_under_way_is_completed_before_it_stops() {
    let served = Served::new(&[]);
    let (object, params) = slow(served.dir.path());
    let load = served.command(env!("CARGO_BIN_EXE_modload"), &[&object, &params[0], &params[1]]).spawn().unwrap();
    let client = Guard(load);
    until("init is under way", || served.dir.path().join("begun").exists());
    served.server.signal("TERM");
    fs::write(served.dir.path().join("go"), "").unwrap();
    assert_eq!(client.ended().0.code(), Some(0));
    assert_eq!(served.server.ended().0.code(), Some(0));
}

#[test]
fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
    let served = Served::new(&[&object("greet")]);
    let mut second = Command::new(env!("CARGO_BIN_EXE_modhost"));
    let second = second.arg("serve").arg("--socket").arg(served.socket()).output().unwrap();
    assert!(refused(&second).ends_with("host.sock: another host serves there\n"));
    assert_eq!(served.list(), ["greet LIVE"]);
    // A killed server leaves its socket file behind.
    let (socket, Served { server, dir }) = (served.socket(), served);
    server.signal("KILL");
    assert_eq!(server.ended().0.signal(), Some(9));
    assert!(socket.exists());
    let gone = Command::new(env!("CARGO_BIN_EXE_modhost")).args(["list", "--host"]).arg(&socket).output().unwrap();
    assert!(refused(&gone).contains("no host serves there"));
    let served = Served { server: serve(&socket, &[]), dir };
    assert_eq!(served.list(), [""; 0]);
    assert_eq!(served.stop().0.code(), Some(0));
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("precious");
    fs::write(&file, "data").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_modhost")).args(["serve", "--socket"]).arg(&file).output().unwrap();
    assert!(refused(&output).contains("not a socket of this user"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    // No lock file is left for a socket that cannot be created.
    let long = dir.path().join("x".repeat(108));
    let output = Command::new(env!("CARGO_BIN_EXE_modhost")).args(["serve", "--socket"]).arg(long).output().unwrap();
    assert!(refused(&output).contains("naming the socket"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_empty_variable_names_no_host() {
    let output = Command::new(env!("CARGO_BIN_EXE_modload")).arg(object("greet")).env("MODLOAD_HOST", "").output();
    assert_eq!(done(&output.unwrap()), "");
}

/// Runs `modhost serve` by `exec` in a shell, because LISTEN_PID must be the process's own id.
fn activated(descriptor: impl Into<Stdio>) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve"]);
    command.arg(env!("CARGO_BIN_EXE_modhost")).stdin(descriptor);
    command
}

#[test]
fn a_socket_can_be_inherited_and_readiness_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, notify) = (dir.path().join("host.sock"), dir.path().join("notify"));
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(modload_fixtures::LONG)).unwrap();
    let listener = std::os::fd::OwnedFd::from(UnixListener::bind(&socket).unwrap());
    let server = ready(activated(listener).env("NOTIFY_SOCKET", &notify), "listening on the inherited socket\n");
    let mut message = [0; 64];
    let len = told.recv(&mut message).unwrap();
    assert_eq!(&message[..len], b"READY=1");
    let served = Served { server, dir };
    done(&served.modload(&[&object("greet")]));
    assert_eq!(served.list(), ["greet LIVE"]);
    served.server.signal("TERM");
    assert_eq!(served.server.ended().0.code(), Some(0));
    assert!(socket.exists(), "it is systemd's");
    let wrong = activated(fs::File::open("/dev/null").unwrap()).output().unwrap();
    assert!(refused(&wrong).contains("not a listening Unix stream socket"));
}

#[test]
fn modules_of_a_folder_are_loaded_but_for_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["greet", "guest"] {
        fs::copy(object(name), dir.path().join(format!("{name}.o"))).unwrap();
    }
    let served = Served::new(&[&object("greet")]);
    let folder = dir.path().display().to_string();
    let traced = done(&served.modload(&["--deps", &folder, "--trace", "--format", "json", "guest"]));
    assert!(
        traced.lines().count() > 10 && traced.lines().all(|line| line.contains("\"module\":\"guest\"")),
        "{traced}"
    );
    assert_eq!(served.list(), ["greet LIVE", "guest LIVE"]);
    assert_eq!(done(&served.modload(&["--deps", &folder, "guest"])), "");
}

#[test]
fn refusals_as_data_have_their_parts() {
    let served = Served::new(&["--block", "guest", &object("greet")]);
    let error = |output: &Output| serde_json::from_str::<Value>(&refused(output)).unwrap()["error"].clone();
    let blocked = error(&served.modload(&["--format", "json", &object("guest")]));
    assert_eq!(
        (&blocked["kind"], &blocked["module"], &blocked["stage"]),
        (&"load".into(), &"guest".into(), &"admit".into())
    );
    let missing = error(&served.modload(&["--format", "json", &object("missing")]));
    assert!(missing["unresolved"].is_array() && missing["errno"] == 2, "{missing}");
    let force = error(&served.modunload(&["--format", "json", "--force", "nobody"]));
    assert_eq!(force["kind"], "no_module");
    let unloaded = done(&served.modunload(&["--format", "json", "greet"]));
    assert_eq!(unloaded, "{\"event\":\"unloaded\",\"module\":\"greet\"}\n");
}

#[test]
fn options_of_an_embedded_host_are_wrong_usage_for_another() {
    let served = Served::new(&[]);
    for arguments in [
        &["--policy", "license=warn", "a.o"][..],
        &["--no-process-symbols", "a.o"],
        &["--export-globals", "--host", "elsewhere", "a.o"],
        &["--vermagic", "x", "a.o"],
        &["--block", "x", "a.o"],
        &[],
    ] {
        assert_eq!(served.modload(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(served.modunload(&[]).status.code(), Some(2));
    assert_eq!(served.modhost(&["serve", "--"]).status.code(), Some(2));
    for (program, arguments, example) in [
        (env!("CARGO_BIN_EXE_modunload"), &["--help"][..], "modunload guest greet"),
        (env!("CARGO_BIN_EXE_modhost"), &["serve", "--help"], "modhost serve greet.o times=3 -- guest.o"),
        (env!("CARGO_BIN_EXE_modhost"), &["list", "--help"], "modhost list --host ./host.sock greet"),
        (env!("CARGO_BIN_EXE_modhost"), &["params", "--help"], "modhost params greet times=5"),
        (env!("CARGO_BIN_EXE_modhost"), &["check", "--help"], "modhost check *.o"),
    ] {
        let help = done(&served.command(program, arguments).output().unwrap());
        assert!(help.contains(example) && help.contains("Exit status"), "{help}");
    }
}

#[test]
fn files_are_checked_without_a_host() {
    let check = |files: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_modhost")).args([&["check"], files].concat()).output().unwrap()
    };
    let (greet, refusal) = (object("greet"), object("exec_stack"));
    assert_eq!(done(&check(&[&greet])), format!("{greet}: can be loaded\n"));
    let mixed = check(&[&refusal, &greet, "/nowhere.o"]);
    let said = refused(&mixed);
    assert_eq!(said, "modhost: 2 of 3 files cannot be loaded\n");
    let lines = text(&mixed.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines[0].contains("it asks for an executable stack") && lines[1].ends_with("can be loaded"), "{lines:?}");
    assert!(lines[2].starts_with("/nowhere.o: No such file"), "{lines:?}");
    let data = check(&["--format", "json", &refusal]);
    let data: Value = serde_json::from_slice(&data.stdout).unwrap();
    assert!(data["refused"].as_str().unwrap().contains("executable stack"), "{data}");
}

/// A module with a function that creates a file when it is called, and returns once another file exists.
const WAITER: &str = "
#include <modload/module.h>
int access(const char *path, int mode);
int open(const char *path, int flags, ...);
int close(int descriptor);
int usleep(unsigned int microseconds);
static char *begun = \"\", *go = \"\";
module_param(begun, charp, 0444);
module_param(go, charp, 0444);
MODULE_LICENSE(\"GPL\");
int wait_for(void);
int wait_for(void)
{
	close(open(begun, 0101, 0600));
	while (access(go, 0) != 0)
		usleep(1000);
	return 42;
}
";

#[test]
fn what_a_call_holds_is_waited_for_or_forced() {
    let object = object_from_text("waiter", Language::C, WAITER, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let object = object.display().to_string();
    for (host, options, status, says) in [
        (&[][..], &[][..], 1, "in use (1 reference is held)\n"),
        (&[], &["--wait", "1"], 1, "waiting: waiter: in use (1 reference is held)\n"),
        (&[], &["--force"], 1, "waiter: this host does not unload by force: wait until it is no longer used\n"),
        (&["--allow-force"], &["--force"], 0, "warning: waiter: unloaded by force (1 reference is held)"),
    ] {
        let served = Served::new(host);
        let file = |name: &str| served.dir.path().join(name);
        let params = ["begun", "go"].map(|name| format!("{name}={}", file(name).display()));
        done(&served.modload(&[&object, &params[0], &params[1]]));
        let name = served.list()[0].split(' ').next().unwrap().to_owned();
        let call = Guard(served.command(env!("CARGO_BIN_EXE_modload"), &["--call", "wait_for"]).spawn().unwrap());
        until("the call is under way", || file("begun").exists());
        let output = served.modunload(&[options, &[name.as_str()]].concat());
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(status) && said.contains(&says.replace("waiter", &name)),
            "{options:?}: {said}"
        );
        // The call still returns, to code that is still mapped.
        fs::write(file("go"), "").unwrap();
        assert_eq!(call.ended().0.code(), Some(0));
        let listing = text(&served.modhost(&["list"]).stdout);
        assert_eq!(listing.contains("the host is tainted: R\n"), status == 0, "{listing}");
        assert_eq!(served.stop().0.code(), Some(0));
    }
}

/// A module that leaves a thread behind. The thread ends once a file exists.
const LEAVER: &str = "
#include <modload/module.h>
#include <pthread.h>
int access(const char *path, int mode);
int usleep(unsigned int microseconds);
static char *go = \"\";
module_param(go, charp, 0444);
static void *wait_for_file(void *nothing)
{
	while (access(go, 0) != 0)
		usleep(1000);
	return nothing;
}
static int __init leaver_init(void)
{
	pthread_t thread;
	return -pthread_create(&thread, 0, wait_for_file, 0);
}
module_init(leaver_init);
static void __exit leaver_exit(void)
{
}
module_exit(leaver_exit);
";

#[test]
fn a_module_that_leaves_a_thread_is_shown_in_quarantine() {
    let served = Served::new(&[]);
    let object = object_from_text("leaver", Language::C, LEAVER, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let go = served.dir.path().join("go");
    done(&served.modload(&[&object.display().to_string(), &format!("go={}", go.display())]));
    assert_eq!(served.modunload(&["leaver"]).status.code(), Some(0));
    assert!(served.list().is_empty(), "its name is free");
    let says = "in quarantine until no thread is in their code: leaver";
    let listed = || done(&served.modhost(&["list"]));
    for _ in 0..3 {
        assert!(listed().lines().any(|line| line == says), "{}", listed());
    }
    fs::write(go, "").unwrap();
    until("it is freed", || !listed().contains("quarantine"));
    let (status, stderr) = served.stop();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}
