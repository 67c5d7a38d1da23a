//! The `modload` command: help, wrong usage, refusals, formats, the demo.

use std::io::Read;
use std::process::{Command, Output, Stdio};

use modload_fixtures::{Compiler, Fixture};
use serde_json::Value;

fn modload(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modload")).args(arguments).output().unwrap()
}

fn object(name: &str) -> String {
    let path = Fixture::new(name).object(Compiler::Cc, &["-O2", "-fPIC", "-fvisibility=hidden"]).unwrap();
    path.display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json_lines(output: &[u8]) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[test]
fn help_has_examples_and_version_a_number() {
    let help = modload(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout);
    for part in [
        "modload --call add=2,3 plain.o",
        "modload --demo",
        "modload [OPTIONS] --deps DIR NAME",
        "Exit status: 0 done, 1 refused or failed, 2 wrong usage",
    ] {
        assert!(help.contains(part), "{part}\n{help}");
    }
    assert_eq!(text(&modload(&["--version"]).stdout), "modload 0.1.0\n");
}

#[test]
fn wrong_usage_is_status_2_and_says_what_is_wrong() {
    for (arguments, says) in [
        (&[][..], "FILE"),
        (&["--nonsense", "a.o"], "--nonsense"),
        (&["--call", "f:float", "a.o"], "is not a type"),
        (&["--format", "xml", "a.o"], "xml"),
        (&["a.o", "--"], "must be followed by a file"),
        (&["--demo", "a.o"], "--demo"),
        (&["--demo", "--", "a.o"], "--demo takes no files"),
    ] {
        let output = modload(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(says), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_refusal_is_status_1_and_one_sentence() {
    let missing = modload(&["no/such/file.o"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(text(&missing.stderr), "modload: no/such/file.o: No such file or directory (os error 2)\n");
    let greet = object("greet");
    let refused = modload(&[&greet, "times=many"]);
    assert_eq!(refused.status.code(), Some(1));
    let sentence = format!(
        "modload: {greet}: greet: params: parameter \"times\": \"many\" is not of type int \
         (decimal, 0x and hexadecimal, or 0 and octal)\n"
    );
    assert_eq!(text(&refused.stderr), sentence);
}

#[test]
fn a_refusal_as_json_has_its_parts() {
    let missing = modload(&["--format", "json", &object("missing")]);
    assert_eq!(missing.status.code(), Some(1));
    let error = &json_lines(&missing.stderr)[0]["error"];
    assert_eq!((error["module"].as_str(), error["stage"].as_str()), (Some("missing"), Some("resolve")));
    let unresolved: Vec<_> = error["unresolved"].as_array().unwrap().iter().map(|one| one["symbol"].as_str()).collect();
    assert_eq!(unresolved, [Some("greet_helo"), Some("no_such_table"), Some("no_such_function")]);
}

#[test]
fn the_trace_is_the_same_in_text_and_as_json() {
    let greet = object("greet");
    let plain = text(&modload(&["--trace", "--call", "greet_count", &greet, "times=4"]).stdout);
    assert!(!plain.contains('\x1b'), "no colours where there is no terminal");
    assert!(plain.contains("greet_count() = 4\n"), "{plain}");
    let json =
        json_lines(&modload(&["--format", "json", "--trace", "--call", "greet_count", &greet, "times=4"]).stdout);
    assert_eq!(json.len(), plain.lines().count());
    let states = json.iter().filter(|event| event["event"] == "state").filter_map(|event| event["state"].as_str());
    let states: Vec<_> = states.collect();
    assert_eq!(states, ["UNFORMED", "COMING", "LIVE", "GOING"]);
    let call = json.iter().find(|event| event["event"] == "call").unwrap();
    assert_eq!((call["symbol"].as_str(), call["result"].as_i64()), (Some("greet_count"), Some(4)));
    let numbers: Vec<_> = json.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len().try_into().unwrap()), "{numbers:?}");
}

#[test]
fn a_failed_load_unloads_what_was_there_and_the_trace_tells() {
    let (greet, missing) = (object("greet"), object("missing"));
    let output = modload(&["--trace", "--call", "greet_count", &greet, "--", &missing]);
    assert_eq!(output.status.code(), Some(1));
    let trace = text(&output.stdout);
    let at = |part: &str| trace.find(part).unwrap_or_else(|| panic!("{part}\n{trace}"));
    assert!(at("missing      failed    resolve: 3 unresolved symbols") < at("missing      freed"));
    assert!(at("missing      freed") < at("greet        state     GOING"));
    assert!(trace.ends_with("greet        freed\n"), "{trace}");
    assert!(!trace.contains("greet_count()"), "no calls after a failed load");
}

#[test]
fn warnings_are_said_without_a_trace() {
    let output = modload(&[&object("greet"), "bogus=1"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "modload: warning: greet: unknown parameter \"bogus\" ignored\n");
}

#[test]
fn names_from_files_cannot_reach_the_terminal_unescaped() {
    let output = modload(&[&object("greet"), "\u{1b}[31mred=1"]);
    assert!(!output.stderr.contains(&0x1b), "{:?}", text(&output.stderr));
}

#[test]
fn without_the_process_symbols_libc_is_not_there() {
    let matrix = object("matrix");
    assert!(modload(&[&matrix]).status.success());
    let output = modload(&["--no-process-symbols", &matrix]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("\"malloc\""), "{}", text(&output.stderr));
}

#[test]
fn plain_objects_share_their_globals_only_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let compile = |name: &str, source: &str| {
        let (c, o) = (dir.path().join(format!("{name}.c")), dir.path().join(format!("{name}.o")));
        std::fs::write(&c, source).unwrap();
        assert!(Command::new("cc").args(["-O2", "-c", "-o"]).args([&o, &c]).status().unwrap().success());
        o.display().to_string()
    };
    let one = compile("one", "int one(void) { return 1; }");
    let two = compile("two", "int one(void); int two(void) { return one() + one(); }");
    let apart = modload(&["--call", "two", &one, "--", &two]);
    assert_eq!(apart.status.code(), Some(1));
    let together = modload(&["--export-globals", "--call", "two", &one, "--", &two]);
    assert_eq!(text(&together.stdout), "two() = 2\n", "{}", text(&together.stderr));
}

#[test]
fn the_demo_shows_the_whole_life_of_two_modules() {
    let output = modload(&["--demo"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let demo = text(&output.stdout);
    let mut rest = &demo[..];
    for part in [
        "mappings in the process",
        "greet        state     LIVE",
        "guest        state     COMING",
        "guest        notify    coming COMING -> inventory (10): ok",
        "guest        notify    coming COMING -> metrics (0): ok",
        "guest_again() = 8",
        "before     greet_hello: nop",
        "meanwhile  greet_hello: ",
        "guest_again() = 12",
        "after      greet_hello: nop",
        "greet_hello [greet]();",
        "guest_again [guest]() {",
        "  greet_count [greet]();",
        "} /* guest_again [guest] */",
        "livepatch: 'greet_fix': patching complete",
        "greet        notify    coming COMING -> ftrace",
        "livepatch: applying patch 'greet_fix' to loading module 'greet'",
        "greet        notify    coming COMING -> livepatch",
        "greet        init      returned 0",
        "greet_count() = 42",
        "livepatch: 'greet_refix': patching complete",
        "greet_count() = 43",
        "greet_fix    freed",
        "livepatch: reverting patch 'greet_refix' on unloading module 'greet'",
        "greet        notify    going GOING -> livepatch",
        "greet        notify    going GOING -> ftrace",
        "r-xp  text",
        "unload greet -> greet: in use by guest",
        "guest        notify    going GOING -> metrics (-1): ok",
        "guest        notify    going GOING -> inventory (-11): ok",
        "greet        freed",
        "read-only data         0 bytes used",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("{part}\n{demo}"));
        rest = &rest[at + part.len()..];
    }
    let json = json_lines(&modload(&["--demo", "--format", "json"]).stdout);
    assert!(json.iter().any(|event| event["event"] == "notify" && event["subscriber"] == "metrics"));
    let records = json.iter().find_map(|value| value["records"].as_array()).expect("what was traced");
    assert_eq!(records.len(), 8, "{records:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_modload"))
        .args(["--demo"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    child.wait().unwrap();
    assert_eq!(stderr, "");
}

#[test]
fn compressed_files_load_like_plain_ones() {
    let dir = tempfile::tempdir().unwrap();
    let greet = std::fs::read(object("greet")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, &greet).unwrap();
    let packed = gzip.finish().unwrap();
    let path = dir.path().join("greet.o.gz");
    std::fs::write(&path, &packed).unwrap();
    let output = modload(&["--call", "greet_count", &path.display().to_string()]);
    assert_eq!(text(&output.stdout), "greet_count() = 1\n", "{}", text(&output.stderr));
    std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    let output = modload(&[&path.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("its gzip data cannot be decompressed"), "{}", text(&output.stderr));
}

#[test]
fn more_sections_than_the_header_can_count() {
    let dir = tempfile::tempdir().unwrap();
    let (source, object) = (dir.path().join("many.s"), dir.path().join("many.o"));
    let section = |i: u32| format!(".section .text.f{i},\"ax\"\n.globl f{i}\nf{i}: mov ${i}, %eax\nret\n");
    std::fs::write(&source, (0..66_000).map(section).collect::<String>()).unwrap();
    assert!(Command::new("as").arg("-o").args([&object, &source]).status().unwrap().success());
    let output = modload(&["--call", "f0", "--call", "f65999", &object.display().to_string()]);
    assert_eq!(text(&output.stdout), "f0() = 0\nf65999() = 65999\n", "{}", text(&output.stderr));
}

#[test]
fn a_symbol_of_an_empty_section_has_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let (source, object) = (dir.path().join("empty.s"), dir.path().join("empty.o"));
    std::fs::write(&source, ".data\nnothing:\n.text\n.globl where\nwhere: lea nothing(%rip), %rax\nret\n").unwrap();
    assert!(Command::new("as").arg("-o").args([&object, &source]).status().unwrap().success());
    let output = text(&modload(&["--call", "where:u64", &object.display().to_string()]).stdout);
    let address: u64 = output.trim().strip_prefix("where() = ").unwrap().parse().unwrap();
    assert!(address > 0x1000_0000, "{output}");
}
