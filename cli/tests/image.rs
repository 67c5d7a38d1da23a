//! `modhost image`: a small object in an invented machine, and wrong inputs.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use modload_fixtures::{Compiler, Language, object_from_text};
use serde_json::Value;
use tempfile::TempDir;

/// A call, a return with or without a thunk on the machine, and data in a section whose name is not a file name.
const TEXT: &str = "
.text
.globl start
start:
    call helper
1:  jmp __x86_return_thunk
.section .return_sites,\"a\"
    .long 1b - .
.section \"odd/name\",\"a\"
    .quad start
.data
    .quad start
";

const ADDRESSES: &str = ".text ffffffffc0000000\n.return_sites 0xffffffffc0001000\nodd/name ffffffffc0001100\n\
                         .data ffffffffc0002000\n";
const SYMBOLS: &str = "ffffffff81000100 T helper\nffffffff81000200 T __x86_return_thunk\n";

/// `call helper`, `ret`, four `int3`.
const CODE: [u8; 10] = [0xe8, 0xfb, 0x00, 0x00, 0xc1, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc];

/// A folder with the object and the files that describe a machine.
struct Scene {
    dir: TempDir,
    object: String,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Scene {
    fn new() -> Scene {
        let object = object_from_text("small", Language::Assembler, TEXT, Compiler::Cc, &[]).unwrap();
        let scene = Scene { dir: tempfile::tempdir().unwrap(), object: object.display().to_string() };
        for (name, contents) in
            [("addresses", ADDRESSES), ("symbols", SYMBOLS), ("caps", "0 0x0\n0\n"), ("facts", "# none\nsmp 1\n")]
        {
            scene.write(name, contents);
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, contents: &str) {
        fs::write(self.path(name), contents).unwrap();
    }

    /// Runs the command in the folder, so that files have short names.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modhost"));
        command.current_dir(&self.dir).args(["image", "--symbols", "symbols", "--cpu-caps", "caps"]);
        command.args(["--facts", "facts"]).args(arguments).output().unwrap()
    }

    fn image(&self, arguments: &[&str]) -> Output {
        self.run(&[&[&*self.object, "--addresses", "addresses"], arguments].concat())
    }

    /// Returns the error message of a failing command.
    fn refused(&self) -> String {
        let output = self.image(&[]);
        assert!(!output.status.success(), "{}", text(&output.stdout));
        text(&output.stderr)
    }
}

#[test]
fn sections_are_written_under_safe_names() {
    let scene = Scene::new();
    let output = scene.image(&["--out", "out"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(scene.path("out/.text")).unwrap(), CODE);
    assert_eq!(fs::read(scene.path("out/odd%2fname")).unwrap(), 0xffff_ffff_c000_0000_u64.to_le_bytes());
    let shown = text(&output.stdout);
    assert!(shown.starts_with(".text 0xffffffffc0000000 10 "), "{shown}");
    // With --only-relocate, returns still go through the thunk as compiled.
    let relocated = scene.image(&["--only-relocate", "--out", "relocated"]);
    assert!(relocated.status.success(), "{}", text(&relocated.stderr));
    let code = fs::read(scene.path("relocated/.text")).unwrap();
    assert_eq!((&code[..5], code[5]), (&CODE[..5], 0xe9));
}

#[test]
fn the_same_as_json() {
    let scene = Scene::new();
    let output = scene.image(&["--format", "json"]);
    let sections: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let odd = sections.iter().find(|section| section["section"] == "odd/name").unwrap();
    assert_eq!((odd["address"].as_str(), odd["size"].as_u64()), (Some("0xffffffffc0001100"), Some(8)));
    assert_eq!(odd["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn a_line_that_cannot_be_read_is_named() {
    let wrong = [
        ("addresses", ".text ffffffffc0000000\n\n.data\n", "addresses:3: expected SECTION HEXADDRESS"),
        ("addresses", ".text 12345678g\n", "addresses:1: expected SECTION HEXADDRESS"),
        ("addresses", ".text 0\n.text 1\n", "addresses:2: a second address for \".text\""),
        ("symbols", "ffffffff81000100 T helper\nffffffff81000200 T\n", "symbols:2: expected HEXADDRESS TYPE NAME"),
        ("symbols", "here T helper\n", "symbols:1: here is no address"),
        ("caps", "0\n0 0xfpu\n", "caps:2: \"0xfpu\" is not a hexadecimal word"),
        ("caps", "123456789\n", "caps:1: \"123456789\" is not a hexadecimal word"),
        ("facts", "smp 1\nsmp 2\n", "facts:2: \"smp 2\" is no fact"),
        ("facts", "weather fine\n", "facts:1: \"weather fine\" is no fact"),
        ("facts", "static_key helper 2\n", "facts:1: a static key is 0 or 1"),
        ("facts", "static_call nobody 0\n", "facts:1: there is no symbol \"nobody\""),
        ("facts", "pv_op many 0\n", "facts:1: \"many\" is no number of an operation"),
        ("facts", "percpu here\n", "facts:1: percpu takes an address"),
        ("facts", "return_thunk nobody\n", "facts:1: there is no symbol \"nobody\""),
    ];
    for (file, contents, why) in wrong {
        let scene = Scene::new();
        scene.write(file, contents);
        let said = scene.refused();
        assert!(said.contains(why), "{file}: {contents:?}: {said}");
    }
    let scene = Scene::new();
    fs::write(scene.path("facts"), b"smp \xff\n").unwrap();
    assert!(scene.refused().contains("facts:1: it is not UTF-8"));
    fs::remove_file(scene.path("caps")).unwrap();
    assert!(scene.refused().contains("caps: "), "{}", scene.refused());
}

#[test]
fn what_is_missing_or_in_the_way_is_named() {
    let scene = Scene::new();
    scene.write("addresses", ".return_sites ffffffffc0001000\n.data ffffffffc0002000\n");
    // One symbol table gives the addresses of all modules in the same memory.
    let output = scene.image(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    scene.write("addresses", "");
    assert!(scene.refused().contains("section \".text\": no address is given for it"), "{}", scene.refused());
    scene.write("addresses", &ADDRESSES.replace("c0001100", "c0000009"));
    assert!(scene.refused().contains("section \"odd/name\": it would overlap another section"), "{}", scene.refused());
    scene.write("addresses", ADDRESSES);
    scene.write("symbols", "ffffffff81000200 T __x86_return_thunk\n");
    assert!(scene.refused().contains("helper"), "{}", scene.refused());
}

#[test]
fn a_difference_is_explained_by_the_edit_that_wrote_there() {
    let scene = Scene::new();
    assert!(scene.image(&["--out", "memory"]).status.success());
    assert!(scene.image(&["--diff", "memory"]).status.success());
    // Sections that the module itself writes are not compared.
    fs::write(scene.path("memory/.data"), [0; 8]).unwrap();
    for (at, why) in [(2, "written by relocation 0 of section "), (6, "written by relocation 1 of section ")] {
        let mut code = CODE;
        code[at] ^= 1;
        fs::write(scene.path("memory/.text"), code).unwrap();
        let output = scene.image(&["--diff", "memory"]);
        let shown = text(&output.stdout);
        assert!(!output.status.success());
        assert!(shown.contains(&format!(".text+{at:#x}: 1 bytes differ")) && shown.contains(why), "{shown}");
        assert_eq!(shown.contains("return site 0 of section "), at == 6, "{shown}");
        assert!(shown.ends_with("3 sections compared, 1 differ\n"), "{shown}");
    }
}

#[test]
fn a_bad_entry_of_a_list_does_not_stop_the_others() {
    let scene = Scene::new();
    let object = &scene.object;
    scene.write("empty", "");
    scene.write("more", "smp 0\n");
    scene.write("list", &format!("{object} empty\n\n{object} addresses - out\n{object} addresses more\n"));
    let output = scene.run(&["--batch", "list"]);
    let shown = text(&output.stdout);
    assert!(!output.status.success());
    assert!(shown.contains("section \".text\": no address is given for it"), "{shown}");
    assert!(shown.contains("3 modules, 1 refused"), "{shown}");
    assert!(text(&output.stderr).contains("1 of 3 modules could not be linked"));
    assert_eq!(fs::read(scene.path("out/.text")).unwrap(), CODE);
    let json = scene.run(&["--batch", "list", "--format", "json"]);
    let lines: Vec<Value> = text(&json.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["file"], object.as_str());
    assert_eq!((&lines[1]["modules"], &lines[1]["refused"]), (&3.into(), &1.into()));
    scene.write("list", "one\n");
    let said = text(&scene.run(&["--batch", "list"]).stderr);
    assert!(said.contains("list:1: expected FILE ADDRESSES [FACTS [DIR]]"), "{said}");
}

/// A module whose static call sites name trampolines: two keys of the kernel are not exported, one key belongs to a
/// module but two modules have this name, and one key is the module's own.
const CALLS: &str = "
.text
.globl start
start:
1:  call __SCT__probe
2:  jmp __SCT__probe
3:  call __SCT__shared
4:  call __SCT__own
.section .static_call.text,\"ax\"
.globl __SCT__own
__SCT__own:
    .byte 0xe9
    .long 0
    ud1 %esp, %ecx
.section .static_call_sites,\"aw\"
    .long 1b - ., __SCT__probe - .
    .long 2b - ., __SCT__probe - . + 1
    .long 3b - ., __SCT__shared - .
    .long 4b - ., __SCT__own - .
.data
.globl __SCK__own
__SCK__own:
    .quad 0, 0
";

/// The key of a site that names its trampoline is the trampoline's key. A fact about the key applies to such sites too.
#[test]
fn a_fact_about_a_key_holds_where_a_site_names_its_trampoline() {
    let scene = Scene::new();
    let object = object_from_text("calls", Language::Assembler, CALLS, Compiler::Cc, &[]).unwrap();
    let object = object.display().to_string();
    let addresses = ".text ffffffffc0000000\n.static_call.text ffffffffc0001000\n.static_call_sites ffffffffc0002000\n\
                     .data ffffffffc0003000\n";
    scene.write("addresses", addresses);
    // Two modules have the name `shared`. The symbols of the module that exports the trampoline are used.
    let symbols = "ffffffff81000000 T __SCT__probe\nffffffff82000000 D __SCK__probe\nffffffff81000100 T target\n\
                   ffffffffc1000000 t __SCT__shared\t[other]\nffffffffc1001000 d __SCK__shared\t[other]\n\
                   ffffffffc2000000 t __SCT__shared\t[exporter]\nffffffffc2001000 d __SCK__shared\t[exporter]\n\
                   ffffffffc2002000 r __ksymtab___SCT__shared\t[exporter]\n";
    scene.write("symbols", symbols);
    let made = |facts: &str| {
        scene.write("facts", facts);
        let output = scene.run(&[&object, "--addresses", "addresses", "--out", "made"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::read(scene.path("made/.text")).unwrap()
    };
    let compiled = made("");
    // `nopl 0(%rax,%rax)`, `jmp target`, `call target`, and the module's own: `call target`.
    let to = |opcode: u8, site: i64| {
        let distance = i32::try_from(
            0xffff_ffff_8100_0100_u64.cast_signed() - (0xffff_ffff_c000_0000_u64.cast_signed() + site + 5),
        );
        [&[opcode][..], &distance.unwrap().to_le_bytes()].concat()
    };
    let nop = vec![0x0f, 0x1f, 0x44, 0x00, 0x00];
    let expected = [to(0xe8, 0), to(0xe9, 5), nop, to(0xe8, 15)].concat();
    for key in ["0xffffffff82000000", "__SCK__probe", "0xffffffff81000000", "__SCT__probe"] {
        for shared in ["0xffffffffc2001000", "0xffffffffc2000000", "__SCT__shared"] {
            let facts = format!(
                "static_call {key} target\nstatic_call {shared} 0\nstatic_call 0xffffffffc1001000 target\n\
                 static_call 0xffffffffc0003000 target\n"
            );
            assert_eq!(made(&facts), expected, "{key} {shared}");
        }
    }
    // Without facts the other sites stay as compiled.
    let one = made("static_call __SCK__probe target\n");
    assert_eq!((&one[..10], &one[10..]), (&expected[..10], &compiled[10..]));
}
