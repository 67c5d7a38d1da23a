//! Hostile hosts, modules and environments, each in processes of their own.

mod waiting;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use modload_fixtures::{Compiler, Language, object_from_text};
use tempfile::TempDir;

use waiting::until;

fn object(name: &str, source: &str) -> String {
    let path = object_from_text(name, Language::C, source, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    path.display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A host that is killed when its test ends.
struct Served {
    server: Child,
    dir: TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Served {
    /// Starts the host by `sh`, after a setup command.
    fn after(setup: &str) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("{setup}; exec \"$0\" serve --allow-force --socket host.sock");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_modhost")]).current_dir(dir.path()).stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let served = Served { server, dir };
        assert_eq!(line, "listening on host.sock\n");
        served
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("host.sock")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program).args(arguments).env("MODLOAD_HOST", self.socket()).output().unwrap()
    }

    fn modload(&self, arguments: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_modload"), arguments)
    }
}

/// A host that greets and then sends any text.
fn false_host(path: &Path, says: &'static str) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"{\"modload\":1,\"version\":\"0\"}\n").unwrap();
            let mut line = String::new();
            let _ = BufReader::new(stream.try_clone().unwrap()).read_line(&mut line);
            let _ = stream.write_all(says.as_bytes());
        }
    });
}

#[test]
fn what_a_host_says_cannot_reach_the_terminal_unescaped() {
    const MODULE: &str = "{\"name\":\"\\u001b[31mred\\u009b\",\"state\":\"LIVE\",\"references\":0,\"used_by\":[\"\\u0007\"],\"uses\":[],\
         \"sizes\":{\"text\":1,\"read_only\":1,\"data\":1,\"ro_after_init\":1},\"taint\":\"\\u001bO\",\"license\":\"\\u001bc\",\
         \"params\":[{\"name\":\"\\u001b\",\"type\":\"\\u001b\",\"perm\":\"\\u001b\",\"value\":\"\\u001b\"}]}";
    let refusal = "{\"id\":1,\"error\":{\"kind\":\"load\",\"message\":\"\\u001b]0;title\\u0007\"}}\n".to_owned();
    let warning = "{\"id\":1,\"event\":{\"event\":\"warning\",\"module\":\"\\u001b\",\"message\":\"\\u001b\"},\"text\":\"\\u001b\"}\n\
         {\"id\":1,\"ok\":{\"module\":\"\\u001b\"}}\n";
    let listing = format!("{{\"id\":1,\"ok\":{{\"modules\":[{MODULE}],\"taint\":\"\\u001b\",\"memory\":[]}}}}\n");
    let greet = object("quiet", "int quiet(void) { return 0; }");
    let [modload, modhost, modunload] =
        [env!("CARGO_BIN_EXE_modload"), env!("CARGO_BIN_EXE_modhost"), env!("CARGO_BIN_EXE_modunload")];
    for (says, program, arguments) in [
        (listing, modhost, &["list"][..]),
        (format!("{{\"id\":1,\"ok\":{MODULE}}}\n"), modhost, &["list", "a"]),
        (
            "{\"id\":1,\"ok\":[{\"name\":\"\\u001b\",\"type\":\"\\u001b\",\"perm\":\"0\",\"value\":null}]}\n".into(),
            modhost,
            &["params", "a"],
        ),
        (refusal.clone(), modhost, &["list"]),
        (refusal.clone(), modunload, &["a"]),
        (refusal, modload, &[&greet]),
        (warning.into(), modunload, &["a"]),
        (warning.into(), modload, &[&greet]),
        (warning.into(), modload, &["--trace", &greet]),
        ("\u{1b}[31m no JSON\n".into(), modhost, &["list"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host\u{1b}[31m.sock");
        false_host(&path, String::leak(says.clone()));
        let output = Command::new(program).args(arguments).env("MODLOAD_HOST", &path).output().unwrap();
        let said = text(&[output.stdout, output.stderr].concat());
        assert!(!said.is_empty() || says == warning, "{says}");
        assert!(!said.chars().any(|letter| letter.is_control() && letter != '\n'), "{says}: {said:?}");
    }
}

#[test]
fn nothing_of_the_host_is_inherited_by_what_its_modules_start() {
    let served = Served::after(":");
    let source = "int system(const char *); int look(void) { return system(\"ls -l /proc/$$/fd >open\"); }";
    let look = object("look", source);
    let output = served.modload(&["--call", "look", &look]);
    assert_eq!(text(&output.stdout), "look() = 0\n", "{}", text(&output.stderr));
    let open = fs::read_to_string(served.dir.path().join("open")).unwrap();
    for never in ["socket:", "/mem", ".lock", "look"] {
        assert!(!open.contains(never), "{open}");
    }
}

#[test]
fn descriptors_that_the_host_cannot_have_are_missed_by_name() {
    let served = Served::after("ulimit -n 16");
    let part = |number: u32| object("part", &format!("int part_{number}(void) {{ return {number}; }}"));
    let parts: Vec<String> = (0..12).map(part).collect();
    let mut arguments = vec!["--name", "whole"];
    arguments.extend(parts.iter().map(String::as_str));
    let output = served.modload(&arguments);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("the descriptors of a line are lost"), "{said}");
    // Other clients are served, and only few files fit.
    let output = served.modload(&["--call", "part_1", "--name", "half", &parts[0], &parts[1]]);
    assert_eq!(text(&output.stdout), "part_1() = 1\n", "{}", text(&output.stderr));
}

/// A module that is a client of its own host. `REQUEST` is its request. It returns whether the request was granted.
const CLIENT: &str = r#"
int socket(int, int, int);
int connect(int, const void *, unsigned int);
long send(int, const void *, unsigned long, int);
long recv(int, void *, unsigned long, int);
int close(int);
char *strstr(const char *, const char *);
unsigned long strlen(const char *);
int ask(void);
int ask(void)
{
	struct { unsigned short family; char path[108]; } address = { 1, "host.sock" };
	static char answer[65536];
	unsigned long got = 0;
	int granted = -1, stream = socket(1, 1, 0);
	if (connect(stream, &address, sizeof address) != 0)
		return -2;
	send(stream, REQUEST, strlen(REQUEST), 0);
	while (granted < 0 && got < sizeof answer - 1) {
		long more = recv(stream, answer + got, sizeof answer - 1 - got, 0);
		if (more <= 0)
			break;
		got += more;
		granted = strstr(answer, "\"ok\"") ? 1 : strstr(answer, "\"error\"") ? 0 : -1;
	}
	close(stream);
	return granted;
}
"#;

#[test]
fn a_module_that_unloads_itself_is_refused_or_outlives_its_call() {
    for (force, granted) in [("false", "ask() = 0\n"), ("true", "ask() = 1\n")] {
        let served = Served::after(":");
        let request =
            format!("{{\\\"id\\\":1,\\\"op\\\":\\\"unload\\\",\\\"name\\\":\\\"selfish\\\",\\\"force\\\":{force}}}\\n");
        let source = format!("#define REQUEST \"{request}\"\n{CLIENT}");
        let selfish = object("selfish", &source);
        let loaded = served.modload(&["--name", "selfish", &selfish]);
        assert!(loaded.status.success(), "{}", text(&loaded.stderr));
        let output = served.modload(&["--call", "ask"]);
        assert_eq!(text(&output.stdout), granted, "{}", text(&output.stderr));
        let listed = text(&served.run(env!("CARGO_BIN_EXE_modhost"), &["list"]).stdout);
        assert_eq!(listed.contains("selfish"), force == "false", "{listed}");
    }
}

#[test]
fn a_second_signal_ends_a_host_whose_first_module_never_begins() {
    let dir = tempfile::tempdir().unwrap();
    let source = "int creat(const char *, int); int pause(void); \
                  int init_module(void) { creat(\"begun\", 0600); for (;;) pause(); }";
    let stuck = object("stuck", source);
    let mut command = Command::new(env!("CARGO_BIN_EXE_modhost"));
    command.args(["serve", "--socket", "host.sock", &stuck]).current_dir(dir.path()).stderr(Stdio::piped());
    let server = command.spawn().unwrap();
    let mut served = Served { server, dir };
    until("init is under way", || served.dir.path().join("begun").exists());
    let server = &mut served.server;
    let id = server.id();
    let signal = |name: &str| {
        let kill = format!("kill -s {name} {id}");
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    };
    signal("TERM");
    // Two pending signals of the same kind are one.
    std::thread::sleep(Duration::from_millis(50));
    assert!(server.try_wait().unwrap().is_none());
    signal("INT");
    until("it ends", || server.try_wait().unwrap().is_some());
    let mut said = String::new();
    server.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((server.wait().unwrap().code(), said.as_str()), (Some(1), ""));
}
