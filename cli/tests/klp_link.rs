//! `modhost klp-link`: a patch is written completely, or not at all.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use modload_fixtures::{Compiler, Language, WAYS, object_from_text};
use serde_json::Value;
use tempfile::TempDir;

const FIX: &str = r#"
#include <modload/livepatch.h>
extern int count KLP_SYMBOL(target, count, 0);
int scale(int n) KLP_SYMBOL(target, scale, 2);
int show(void) KLP_SYMBOL(vmlinux, show, 0);
int *where = &count;
int new_scale(int n) { return scale(n) + show(); }
MODULE_INFO(livepatch, "Y");
"#;

const TARGET: &str = "
static int count = 40;
__attribute__((noinline)) static int scale(int n) { __asm__ volatile(\"\"); return 2 * n + count; }
int answer(int n) { count++; return scale(n) + 1; }
";

/// A patch that uses both statics of the target, one of them through an address in its data.
const DEEPER: &str = r#"
#include <modload/livepatch.h>
extern int count KLP_SYMBOL(target, count, 0);
int scale(int n) KLP_SYMBOL(target, scale, 1);
static int *volatile where = &count;
static int new_answer(int n) { count += 100; *where += 200; return scale(n); }
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = (void *)new_answer }, {} };
static struct klp_object objs[] = { { .name = "target", .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
static int __init start(void) { return klp_enable_patch(&patch); }
module_init(start);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
"#;

/// A folder with the object.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new(text: &str) -> Scene {
        let flags = ["-O2", "-fno-pic", "-fno-asynchronous-unwind-tables"];
        let object = object_from_text("fix", Language::C, text, Compiler::Cc, &flags).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::copy(object, dir.path().join("fix.o")).unwrap();
        Scene { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the command in the folder, so that files have short names.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modhost"));
        command.current_dir(self.dir.path()).arg("klp-link").args(arguments).output().unwrap()
    }

    /// Returns the error message of a refused command, which must not have written any file.
    fn refused(&self, arguments: &[&str]) -> String {
        let before = self.files();
        let output = self.run(arguments);
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{arguments:?}");
        assert_eq!(self.files(), before, "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let paths = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).ok())).collect();
        files.sort();
        files
    }
}

fn linked(object: &Path) -> Vec<u8> {
    modload::patch::link::link(&fs::read(object).unwrap()).unwrap().bytes
}

#[test]
fn a_patch_is_made_and_told_of() {
    let scene = Scene::new(FIX);
    let output = scene.run(&["fix.o", "-o", "fix.ko"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "fix.ko: waits for target\n  symbols      scale (number 2), count\n  relocations  1 in .text, 1 in .data\n\
                    fix.ko: waits for vmlinux\n  symbols      show\n  relocations  1 in .text\n";
    // Compilers differ in the order of their symbols.
    assert_eq!(text.replace("count, scale (number 2)", "scale (number 2), count"), expected);
    assert_eq!(fs::read(scene.path("fix.ko")).unwrap(), linked(&scene.path("fix.o")));
    assert_eq!(scene.files().len(), 2, "nothing else is left");
}

#[test]
fn a_patch_runs_whoever_compiled_it_and_how() {
    let flags = ["-O2", "-fPIC", "-fno-optimize-sibling-calls", "-fpatchable-function-entry=5"];
    let target = object_from_text("target", Language::C, TARGET, Compiler::Cc, &flags).unwrap();
    let target = target.to_str().unwrap();
    let mut patches = 0;
    for &compiler in Compiler::for_language(Language::C) {
        if compiler.find().is_none() {
            writeln!(std::io::stderr().lock(), "SKIPPED patches by {compiler}: it is not there").unwrap();
            continue;
        }
        for way in WAYS.iter().filter(|way| !way.halves) {
            let object = object_from_text("deeper", Language::C, DEEPER, compiler, way.flags).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let patch = folder.path().join("deeper.ko");
            fs::write(&patch, linked(&object)).unwrap();
            let patch = patch.to_str().unwrap();
            for files in [[patch, "--", target], [target, "--", patch]] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
                let output = command.args(["--call", "answer=2", "--call", "answer=3"]).args(files).output().unwrap();
                let told = String::from_utf8_lossy(&output.stdout);
                let error = String::from_utf8_lossy(&output.stderr);
                assert_eq!(told, "answer(2) = 344\nanswer(3) = 646\n", "{compiler} {}: {error}", way.name);
            }
            patches += 1;
        }
    }
    assert!(patches >= 10, "{patches} patches");
}

#[test]
fn the_same_as_data() {
    let scene = Scene::new(FIX);
    // An existing file is replaced.
    fs::write(scene.path("fix.ko"), "old").unwrap();
    let output = scene.run(&["--format", "json", "fix.o", "-o", "fix.ko"]);
    let data: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(data["file"], "fix.ko");
    let vmlinux = data["objects"].as_array().unwrap().iter().find(|object| object["name"] == "vmlinux").unwrap();
    assert_eq!(vmlinux["symbols"], serde_json::json!([{ "name": "show", "position": 0 }]));
    assert_eq!(vmlinux["sections"], serde_json::json!([{ "name": ".text", "relocations": 1 }]));
    assert_eq!(fs::read(scene.path("fix.ko")).unwrap(), linked(&scene.path("fix.o")));

    let output = scene.run(&["--format", "json", "fix.ko", "-o", "again.ko"]);
    assert_eq!(output.status.code(), Some(1));
    let data: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(data["error"]["file"], "fix.ko");
    assert!(data["error"]["message"].as_str().unwrap().contains("has been linked already"), "{data}");
}

#[test]
fn what_is_refused_leaves_all_as_it_was() {
    let scene = Scene::new(FIX);
    fs::hard_link(scene.path("fix.o"), scene.path("other")).unwrap();
    symlink("/dev/null", scene.path("null")).unwrap();
    fs::create_dir(scene.path("folder")).unwrap();
    for (arguments, why) in [
        (["fix.o", "-o", "fix.o"], "fix.o is the input file: name another file"),
        (["fix.o", "-o", "other"], "other is the input file"),
        (["fix.o", "-o", "null"], "null: is there already, and is no regular file"),
        (["fix.o", "-o", "folder"], "folder: is there already, and is no regular file"),
        (["fix.o", "-o", ".."], "no regular file"),
        (["fix.o", "-o", "missing/fix.ko"], "missing/fix.ko: No such file"),
        (["missing.o", "-o", "fix.ko"], "missing.o: No such file"),
    ] {
        let refused = scene.refused(&arguments);
        assert!(refused.contains(why), "{arguments:?}: {refused}");
    }
    let plain = Scene::new("int add(int a, int b) { return a + b; }");
    let refused = plain.refused(&["fix.o", "-o", "fix.ko"]);
    assert!(refused.contains("fix.o: the object has no marked symbol"), "{refused}");
    for arguments in [&["fix.o"][..], &["-o", "fix.ko"]] {
        assert_eq!(scene.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
