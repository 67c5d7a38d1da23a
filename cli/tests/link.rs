//! Several objects, and static archives, as one module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use modload_fixtures::{Compiler, Fixture, Language, object_from_text};
use serde_json::Value;

fn compiled(name: &str, text: &str) -> PathBuf {
    object_from_text(name, Language::C, text, Compiler::Cc, &["-O2", "-fPIC", "-w"]).unwrap()
}

/// Returns two objects. Each has its own `secret`, and they share a counter.
fn pair() -> [PathBuf; 2] {
    [
        compiled(
            "first",
            "static int secret = 7; extern int count; int second(int); \
             __attribute__((weak)) int answer(void) { return 1; } \
             int first(int x) { count++; return second(x) + secret + answer(); } int counted(void) { return count; }",
        ),
        compiled(
            "second",
            "static int secret = 100; int count; int answer(void) { return 42; } \
             int second(int x) { count++; return 2 * x + secret; }",
        ),
    ]
}

fn ar(folder: &Path, members: &[PathBuf]) -> PathBuf {
    let archive = folder.join("libmade.a");
    let made = Command::new("ar").arg("rcs").arg(&archive).args(members).status();
    assert!(made.unwrap_or_else(|error| panic!("cannot run `ar`, which is part of binutils: {error}")).success());
    archive
}

fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modload")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs the command and expects these lines.
fn check(options: &[&str], files: &[&Path], expected: &str) {
    let files = files.iter().map(|file| file.as_os_str());
    let output = run(options.iter().map(std::ffi::OsStr::new).chain(files));
    assert!(output.status.success(), "{options:?}: {}", text(&output.stderr));
    assert_eq!(text(&output.stdout), expected, "{options:?}");
}

/// Runs the command and expects this refusal.
fn refused(options: &[&str], files: &[&Path], why: &str) {
    let files = files.iter().map(|file| file.as_os_str());
    let output = run(options.iter().map(std::ffi::OsStr::new).chain(files));
    assert_eq!(output.status.code(), Some(1), "{options:?}");
    assert!(text(&output.stderr).contains(why), "{options:?}: {}", text(&output.stderr));
}

#[test]
fn local_symbols_stay_apart_and_global_ones_are_one_anothers() {
    let [first, second] = pair();
    let calls = ["--name", "both", "--call", "first=1", "--call", "counted"];
    for order in [[&*first, &*second], [&*second, &*first]] {
        // 2 * 1 + 100 from the second, 7 from the first, and the strong answer takes precedence over the weak one.
        check(&calls, &order, "first(1) = 151\ncounted() = 2\n");
    }
    refused(&["--name", "half", "--call", "first=1"], &[&first], "unresolved");
}

#[test]
fn the_halves_of_a_program_are_the_program() {
    let matrix = Fixture::new("matrix");
    let case = matrix.cases().unwrap().into_iter().find(|case| case.way == "merged_pic").unwrap();
    for compiler in [Compiler::Gcc, Compiler::Clang] {
        if compiler.find().is_none() {
            eprintln!("SKIPPED: {compiler:?} is not there");
            continue;
        }
        let half = |define| {
            let flags: Vec<&str> = case.flags.iter().map(String::as_str).chain([define]).collect();
            matrix.object(compiler, &flags).unwrap()
        };
        let (one, two) = (half("-DHALF=1"), half("-DHALF=2"));
        let calls: Vec<String> = case.expect.calls.iter().map(|call| format!("--call={}", call.argument())).collect();
        let lines: String = case.expect.calls.iter().map(|call| call.line() + "\n").collect();
        let options: Vec<&str> = ["--name", "matrix"].into_iter().chain(calls.iter().map(String::as_str)).collect();
        let output = run(options
            .iter()
            .map(|option| (*option).to_owned())
            .chain([one.display().to_string(), two.display().to_string()]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        // Arguments are printed as written.
        let decimal = |line: &str| line.replace("0x10000000", "268435456");
        assert_eq!(decimal(&text(&output.stdout)), decimal(&lines));
    }
}

#[test]
fn of_an_archive_what_is_needed_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = pair();
    let broken = compiled("broken", "int nobody_has(void); int broken(void) { return nobody_has(); }");
    let archive = ar(folder.path(), &[first.clone(), broken, second]);
    // The called function and the members it needs are linked; the broken member is not.
    check(&["--call", "first=1"], &[&archive], "first(1) = 151\n");
    check(&["--call", "second=1"], &[&archive], "second(1) = 102\n");
    // Without a call, the whole archive is the module.
    refused(&[], &[&archive], "\"nobody_has\"");
    // With an object, only the members that it needs are linked.
    let user = compiled("user", "int second(int); int used(void) { return second(20); }");
    check(&["--name", "user", "--call", "used"], &[&user, &archive], "used() = 140\n");
    // As for ld, an archive does not serve files after it.
    refused(&["--name", "user", "--no-process-symbols", "--call", "used"], &[&archive, &user], "\"second\"");
    // A compressed archive gives the same result.
    let packed = folder.path().join("libmade.a.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &fs::read(&archive).unwrap()).unwrap();
    fs::write(&packed, encoder.finish().unwrap()).unwrap();
    check(&["--call", "second=1"], &[&packed], "second(1) = 102\n");
}

#[test]
fn an_archive_with_an_init_is_the_module_that_init_needs() {
    let folder = tempfile::tempdir().unwrap();
    let main = compiled(
        "main",
        "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\"); int helped(void); static int times = 1; \
         module_param(times, int, 0644); int value; \
         static int __init start(void) { value = helped() * times; return 0; } module_init(start); \
         int main_value(void) { return value; }",
    );
    let helper = compiled("helper", "int helped(void) { return 21; }");
    let other = compiled("other", "int nobody_has(void); int other(void) { return nobody_has(); }");
    let archive = ar(folder.path(), &[other, helper, main]);
    let output = run(["--trace", "--call", "main_value", &archive.display().to_string(), "times=2"]);
    let shown = text(&output.stdout);
    assert!(shown.contains("libmade      stage     link: objects 2\n"), "{shown}{}", text(&output.stderr));
    assert!(shown.contains("main_value() = 42\n"), "{shown}");
    let inspected = Command::new(env!("CARGO_BIN_EXE_modhost"))
        .args(["inspect", "--format", "json", &archive.display().to_string()])
        .output()
        .unwrap();
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["objects"], serde_json::json!(["libmade.a(main.o)", "libmade.a(helper.o)"]));
    assert_eq!(inspected["params"][0]["name"], "times");
}

/// Together the objects have more sections than a 16-bit number can count.
#[test]
fn very_many_sections_are_linked() {
    let object = |own: &str, other: &str| {
        let function = |number| {
            format!(
                ".section .text.{own}{number},\"ax\"\n.globl {own}{number}\n{own}{number}: mov ${number},%eax\nret\n"
            )
        };
        let text: String = (0..33_000).map(function).collect();
        let call = format!(".text\n.globl call_{own}\ncall_{own}: jmp {other}32999\n");
        object_from_text(own, Language::Assembler, &(text + &call), Compiler::Cc, &[]).unwrap()
    };
    let (a, b) = (object("a", "b"), object("b", "a"));
    check(
        &["--name", "many", "--call", "call_a", "--call", "call_b"],
        &[&a, &b],
        "call_a() = 32999\ncall_b() = 32999\n",
    );
}

/// Functions with clones for several processors call libgcc's archive to identify the processor.
#[test]
fn clones_for_processors_use_the_compilers_archive() {
    let Some(gcc) = Compiler::Gcc.find() else { return eprintln!("SKIPPED: gcc is not there") };
    let archive = gcc.command().arg("-print-libgcc-file-name").output().unwrap().stdout;
    let archive = text(&archive);
    let clones = object_from_text(
        "clones",
        Language::C,
        "__attribute__((target_clones(\"avx2\", \"sse4.2\", \"default\"))) int sum(const int *from, int count) \
         { int sum = 0; for (int i = 0; i < count; i++) sum += from[i]; return sum; }\n\
         int total(int count) { int all[100]; for (int i = 0; i < 100; i++) all[i] = i; return sum(all, count); }",
        Compiler::Gcc,
        &["-O2", "-fPIC"],
    )
    .unwrap();
    let options = ["--name", "clones", "--no-process-symbols", "--call", "total=100"];
    check(&options, &[&clones, Path::new(archive.trim())], "total(100) = 4950\n");
}

/// A relocation of a compressed section gives its place in the uncompressed section.
#[test]
fn objects_with_compressed_debug_information_are_linked() {
    for compiler in [Compiler::Gcc, Compiler::Clang] {
        if compiler.find().is_none() {
            eprintln!("SKIPPED: {compiler:?} is not there");
            continue;
        }
        let object = |name: &str, text: &str| {
            let many: String = (0..50).map(|at| format!("struct {name}{at} {{ int x[{at}]; }} {name}{at};")).collect();
            object_from_text(name, Language::C, &(many + text), compiler, &["-g", "-gz", "-fPIC"]).unwrap()
        };
        let one = object("one", "int two(void); int one(void) { return two() + 1; }");
        let two = object("two", "int two(void) { return 41; }");
        check(&["--name", "both", "--call", "one"], &[&one, &two], "one() = 42\n");
    }
}

/// Both objects have a function that is kept once, and both have a record of its entry.
#[test]
fn what_tells_of_a_dropped_function_is_dropped_with_it() {
    for compiler in [Compiler::Gcc, Compiler::Clang] {
        if compiler.find_for(Language::Cxx).is_none() {
            eprintln!("SKIPPED: {compiler:?} is not there for C++");
            continue;
        }
        let object = |name: &str, by: u32| {
            let text = format!(
                "inline __attribute__((noinline)) int shared(int x) {{ static int calls; return calls += x; }}\n\
                 extern \"C\" int {name}() {{ return shared({by}); }}"
            );
            let flags = ["-O1", "-fPIC", "-fpatchable-function-entry=5"];
            object_from_text(name, Language::Cxx, &text, compiler, &flags).unwrap()
        };
        let options = ["--name", "both", "--call", "one", "--call", "two"];
        check(&options, &[&object("one", 1), &object("two", 2)], "one() = 1\ntwo() = 3\n");
    }
}

/// In one object the rows of a set with bounds are constant, in the other they are variable.
#[test]
fn a_set_of_constants_and_variables_is_one_range() {
    let row = "__attribute__((section(\"set\"), used)) static";
    let constant = compiled(
        "constant",
        &format!(
            "{row} const int a = 1, b = 2; extern int __start_set[], __stop_set[]; \
             int count(void) {{ return __stop_set - __start_set; }} \
             int sum(void) {{ int sum = 0; for (int *at = __start_set; at < __stop_set; at++) sum += *at; return sum; }}"
        ),
    );
    let variable = compiled("variable", &format!("{row} int c = 10; int *change(void) {{ c += 5; return 0; }}"));
    for order in [[&*constant, &*variable], [&*variable, &*constant]] {
        let calls = ["--name", "set", "--call", "count", "--call", "sum", "--call", "change", "--call", "sum"];
        check(&calls, &order, "count() = 3\nsum() = 13\nchange() = 0\nsum() = 18\n");
    }
}

#[test]
fn what_cannot_be_linked_names_its_object() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = pair();
    let again = compiled("again", "int second(int x) { return x; }");
    let all = [&*first, &*second, &*again];
    refused(&["--name", "twice"], &all, "link: \"second\" is defined in second.o and again in again.o");
    let json = run(["--format", "json", "--name", "twice"]
        .map(Into::into)
        .into_iter()
        .chain(all.iter().map(|path| path.as_os_str().to_owned())));
    let error: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(error["error"]["stage"], "link");
    assert_eq!(error["error"]["objects"], serde_json::json!(["second.o", "again.o"]));

    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let text = write("notes.txt", b"no object at all");
    refused(&["--name", "mixed"], &[&first, &text], "notes.txt: ");
    let cut = write("cut.o", &fs::read(&second).unwrap()[..200]);
    refused(&["--name", "mixed"], &[&first, &cut], "cut.o: ");
    let nothing = write("nothing.a", b"!<arch>\n");
    refused(&[], &[&nothing], "an archive without any object");
    refused(&[], &[&write("thin.a", b"!<thin>\n")], "thin archive");
    refused(&[], &[&write("damaged.a", b"!<arch>\nnonsense")], "a damaged archive");
    let nested = folder.path().join("nested");
    fs::create_dir(&nested).unwrap();
    let inner = ar(&nested, &[first]);
    refused(&[], &[&ar(folder.path(), &[inner])], "libmade.a(libmade.a): ");
    // A name is required for several files, and names a module, so it cannot be used with a folder.
    assert_eq!(run(["--name", "none"]).status.code(), Some(2));
    assert_eq!(run(["--name", "both", "--deps", ".", "x"]).status.code(), Some(2));
    refused(&["--name", "a/b"], &[&second], "it holds a slash");
}
