//! Objects that are valid but unusual: linkers accept them, but few compilers write them. Each is loaded and computes
//! the right result, or is refused by name. `modhost check` refuses the same objects as a load.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use modload_fixtures::{Compiler, Language, object_from_text, workspace_root};

fn c(name: &str, text: &str, flags: &[&str]) -> PathBuf {
    let flags: Vec<&str> = ["-O2", "-fPIC", "-w"].into_iter().chain(flags.iter().copied()).collect();
    object_from_text(name, Language::C, text, Compiler::Cc, &flags).unwrap()
}

fn cxx(name: &str, text: &str) -> PathBuf {
    object_from_text(name, Language::Cxx, text, Compiler::Gcc, &["-O2", "-fPIC", "-w"]).unwrap()
}

fn assembled(name: &str, text: &str) -> PathBuf {
    let text = format!("{text}\n.section .note.GNU-stack,\"\",@progbits\n");
    object_from_text(name, Language::Assembler, &text, Compiler::Cc, &[]).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `modload` with libstdc++ in its process. Words that begin with `@` are file numbers.
fn modload(words: &str, files: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
    command.env("LD_PRELOAD", "libstdc++.so.6");
    for word in words.split_whitespace() {
        match word.strip_prefix('@').and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => command.arg(files[number]),
            None => command.arg(word),
        };
    }
    command.output().unwrap()
}

fn computes(words: &str, files: &[&Path], expected: &str) {
    let output = modload(words, files);
    assert!(output.status.success(), "{words}: {}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout), expected, "{words}");
}

fn refused(words: &str, files: &[&Path], why: &str) {
    let output = modload(words, files);
    assert_eq!(output.status.code(), Some(1), "{words}: {}", text(&output.stdout));
    assert!(text(&output.stderr).contains(why), "{words}: {} does not say {why}", text(&output.stderr));
}

/// Checks that a load and `modhost check` refuse a file for the same reason.
fn checked(file: &Path, why: &str) {
    refused("@0", &[file], why);
    let output = Command::new(env!("CARGO_BIN_EXE_modhost")).arg("check").arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "check {}", file.display());
    assert!(text(&output.stdout).contains(why), "check: {} does not say {why}", text(&output.stdout));
}

fn skipped(what: &str) {
    writeln!(io::stderr().lock(), "SKIPPED {what}").unwrap();
}

#[test]
fn compact_relocations_are_read_alone_in_units_and_in_archives() {
    const CREL: &[&str] = &["-O2", "-fPIC", "-g", "-Wa,--crel,--allow-experimental-crel"];
    let flags = CREL;
    if Compiler::Clang.find().is_none() {
        return skipped("compact relocations: clang is not installed");
    }
    let compact = |name, text| object_from_text(name, Language::C, text, Compiler::Clang, flags).unwrap();
    let table = compact(
        "crel_table",
        "static int one(void) { return 1; } static int two(void) { return 2; } int (*const table[])(void) = { one, two }; \
         int other(int); int far(int n) { return other(n) + table[n & 1](); } int f(void) { return table[0]() + table[1](); }",
    );
    let other = compact("crel_other", "static int values[100]; int other(int n) { return values[n] + 7; }");
    let plain = c("crel_plain", "extern int other(int); int g(void) { return other(1) * 2; }", &[]);
    computes(
        "--call far=1 --call f --call g --name m @0 @1 @2",
        &[&table, &other, &plain],
        "far(1) = 9\nf() = 3\ng() = 14\n",
    );
    computes("--export-globals --call far=0 @1 -- @0", &[&table, &other], "far(0) = 8\n");
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("libcrel.a");
    assert!(Command::new("ar").arg("rcs").arg(&archive).args([&table, &other]).status().unwrap().success());
    computes("--call far=0 --name m @0", &[&archive], "far(0) = 8\n");
    // Truncated, such a section is refused by name.
    let mut cut = fs::read(&other).unwrap();
    let headers = usize::try_from(u64::from_le_bytes(cut[0x28..0x30].try_into().unwrap())).unwrap();
    let count = usize::from(u16::from_le_bytes(cut[0x3c..0x3e].try_into().unwrap()));
    let is_crel = |header: &usize| cut[header + 4..header + 8] == 0x4000_0014_u32.to_le_bytes();
    let header = (0..count).map(|at| headers + 64 * at).find(is_crel).unwrap();
    cut[header + 0x20] -= 1;
    let file = dir.path().join("cut.o");
    fs::write(&file, &cut).unwrap();
    checked(&file, "of compact relocations (SHT_CREL): ");
}

#[test]
fn code_that_nothing_would_call_is_refused_by_its_section() {
    for (section, why) in [
        (
            ".preinit_array,\"aw\",@preinit_array\n.quad f",
            "its type is 0x10 (SHT_PREINIT_ARRAY): a module has no .preinit",
        ),
        (
            ".preinit_array.5,\"aw\",@progbits\n.quad f",
            "section \".preinit_array.5\": its type is 0x10 (SHT_PREINIT_ARRAY): ",
        ),
        (".init,\"ax\",@progbits\ncall f", "section \".init\": its code is a piece of a function"),
        (".fini,\"ax\",@progbits\ncall f", "section \".fini\": its code is a piece of a function"),
        (
            ".hooks,\"aw\",@init_array\n.quad f",
            "section \".hooks\": its type is 0xe (SHT_INIT_ARRAY): its name is not one",
        ),
        (
            ".odd,\"a\",@0x60000042\n.quad 0",
            "section \".odd\": its type is 0x60000042: no section type with this number",
        ),
        (
            ".odd,\"\",@0x60000042\n.quad 0",
            "section \".odd\": its type is 0x60000042: no section type with this number",
        ),
        (
            "__jump_table,\"aw\",@progbits\n.zero 20",
            "section \"__jump_table\": it has 20 bytes, which is no whole number",
        ),
        (".static_call_sites,\"aw\",@progbits\n.zero 9", "which is no whole number of records of 8: the last 1 would"),
        ("__mcount_loc,\"a\",@progbits\n.zero 4", "which is no whole number of records of 8: the last 4 would"),
    ] {
        let file = assembled("unread", &format!(".text\n.globl f\nf: ret\n.section {section}"));
        checked(&file, why);
        // In a link unit the error names the object.
        let other = c("unread_other", "int other;", &[]);
        refused("--name m @0 @1", &[&other, &file], "m: link: unread.o: ");
        refused("--name m @0 @1", &[&other, &file], why);
    }
}

/// A function that throws, and one that catches an exception from another object.
const THROWER: &str = "extern \"C\" int thrower(int n) { if (n > 3) throw n; return n; }
    extern \"C\" int catcher(int n) { try { return thrower(n); } catch (int caught) { return caught + 37; } }";

#[test]
fn a_terminator_hides_no_rows_behind_it() {
    let thrower = cxx("frames_thrower", THROWER);
    for (name, frames) in [
        ("terminator", ".long 0"),
        ("terminators", ".long 0, 0, 0, 0"),
        // With rows of its own before the terminator, and without.
        (
            "rows",
            ".long 20, 0\n.byte 1\n.asciz \"zR\"\n.uleb128 1\n.sleb128 -8\n.byte 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1\n.long 0",
        ),
    ] {
        let text = format!(".text\n.globl hand\nhand: mov $1,%eax\nret\n.section .eh_frame,\"a\",@progbits\n{frames}");
        let hand = assembled(name, &text);
        computes("--name m --call catcher=5 --call hand @0 @1", &[&hand, &thrower], "catcher(5) = 42\nhand() = 1\n");
        computes("--name m --call catcher=5 --call hand @1 @0", &[&hand, &thrower], "catcher(5) = 42\nhand() = 1\n");
        // Old `ld -r` merged sections in this way: the terminator is in the middle of one section.
        let dir = tempfile::tempdir().unwrap();
        let merged = dir.path().join("merged.o");
        let bytes = fs::read(&thrower).unwrap();
        fs::write(&merged, with_terminator(&bytes)).unwrap();
        computes("--call catcher=5 @0", &[&merged], "catcher(5) = 42\n");
    }
}

/// Returns the object with a terminator after the first entry of its `.eh_frame`, in place of padding.
fn with_terminator(object: &[u8]) -> Vec<u8> {
    use object::read::elf::ElfFile64;
    use object::{Object, ObjectSection};
    let file = ElfFile64::<object::Endianness>::parse(object).unwrap();
    let (offset, size) = file.section_by_name(".eh_frame").unwrap().file_range().unwrap();
    let (offset, size) = (usize::try_from(offset).unwrap(), usize::try_from(size).unwrap());
    let mut bytes = object.to_vec();
    // The last entry of a section ends with no-operations. Some of these bytes become an entry of length zero.
    let section = &mut bytes[offset..offset + size];
    let mut at = 0;
    let mut entries = Vec::new();
    while at < section.len() {
        let len = usize::try_from(u32::from_le_bytes(section[at..at + 4].try_into().unwrap())).unwrap();
        entries.push((at, len));
        at += 4 + len;
    }
    for (at, len) in entries {
        let end = at + 4 + len;
        if len > 8 && section[end - 5..end] == [0; 5] && end < section.len() {
            section[at..at + 4].copy_from_slice(&u32::try_from(len - 4).unwrap().to_le_bytes());
            return bytes;
        }
    }
    bytes
}

#[test]
fn a_row_that_goes_to_an_address_is_followed() {
    // The row that gas makes of .cfi directives, except for the advance: an address relative to itself.
    let row = |to: &str| {
        format!(
            ".text\n.globl deep\n.type deep,@function\ndeep: sub $24,%rsp\n0: mov %rdi,8(%rsp)\ncall thrower\nadd $24,%rsp\n1: ret\n\
             .size deep,.-deep\n.section .eh_frame,\"a\",@progbits\n2: .long 4f-3f\n3: .long 0\n.byte 1\n.asciz \"zR\"\n\
             .uleb128 1\n.sleb128 -8\n.byte 16\n.uleb128 1\n.byte 0x1b\n.byte 0x0c, 7, 8, 0x90, 1\n.balign 8\n4: .long 6f-5f\n\
             5: .long 5b-2b\n.long deep-.\n.long 1b+1-deep\n.uleb128 0\n.byte 1\n.long {to}-.\n.byte 0x0e, 32\n.byte 1\n\
             .long 1b-.\n.byte 0x0e, 8\n.balign 8\n6:"
        )
    };
    let text = "extern \"C\" int thrower(int n) { if (n > 3) throw n; return n; } extern \"C\" int deep(int);
         extern \"C\" int catcher(int n) { try { return deep(n); } catch (int caught) { return caught + 37; } }";
    let catcher = cxx("set_loc_catcher", text);
    let deep = assembled("set_loc", &row("0b"));
    computes(
        "--name m --call catcher=5 --call catcher=2 @0 @1",
        &[&deep, &catcher],
        "catcher(5) = 42\ncatcher(2) = 2\n",
    );
    let wrong = assembled("set_loc_wrong", &row("deep+4096").replace("call thrower", "nop"));
    checked(&wrong, "its call frame instruction DW_CFA_set_loc goes to ");
}

#[test]
fn hidden_names_are_their_modules_own() {
    for visibility in ["hidden", "internal"] {
        let module = |number: u32| {
            let text = format!(
                "__attribute__((visibility(\"{visibility}\"), noinline)) int util(void) {{ return {number}; }}
                 int f{number}(void) {{ return util(); }}"
            );
            c("hidden", &text, &[])
        };
        let user = c("hidden_user", "int util(void); int use(void) { return util(); }", &[]);
        let (one, two) = (module(1), module(2));
        computes(
            "--export-globals --call f1 --call f2 --name a @0 -- --name b @1",
            &[&one, &two],
            "f1() = 1\nf2() = 2\n",
        );
        refused("--export-globals --name a @0 -- --name b @1", &[&one, &user], "\"util\"");
    }
}

#[test]
fn of_vague_definitions_the_first_counts() {
    let module = |bind: &str, number: u32| {
        let text = format!(
            "{bind} __attribute__((noinline)) int which(void) {{ return {number}; }} {bind} int value = {number};
             int f{number}(void) {{ return 10 * which() + value; }}"
        );
        c("vague", &text, &[])
    };
    let weak = |number| module("__attribute__((weak))", number);
    let (one, two, strong, stronger) = (weak(1), weak(2), module("", 3), module("", 4));
    let words = |calls: &str| format!("--export-globals {calls} --name a @0 -- --name b @1");
    for (files, calls, expected) in [
        ([&one, &two], "--call f1 --call f2", "f1() = 11\nf2() = 11\n"),
        ([&one, &strong], "--call f1 --call f3", "f1() = 11\nf3() = 11\n"),
        ([&strong, &one], "--call f3 --call f1", "f3() = 33\nf1() = 33\n"),
    ] {
        computes(&words(calls), &files.map(PathBuf::as_path), expected);
    }
    // Modules without exports share only definitions that must be unique in the process.
    computes("--call f1 --call f2 --name a @0 -- --name b @1", &[&one, &two], "f1() = 11\nf2() = 22\n");
    refused(&words(""), &[&strong, &stronger], "exports \"which\", which a exports already");
    // A protected symbol binds within its module, and is the first definition for other modules.
    let protected = module("__attribute__((weak, visibility(\"protected\")))", 5);
    refused(&words("--call f1"), &[&one, &protected], "which a exports already");
}

#[test]
fn a_unique_definition_is_one_for_all_modules_and_the_process() {
    let module = |number: u32| {
        let text = format!(
            ".text\n.globl f{number}\nf{number}: mov counter@GOTPCREL(%rip),%rax\nincl (%rax)\nmov (%rax),%eax\nret\n\
             .section .data.counter,\"aGw\",@progbits,counter,comdat\n.weak counter\n.type counter,@gnu_unique_object\n\
             counter: .long {number}00\n.size counter,4"
        );
        assembled("unique", &text)
    };
    let (one, two) = (module(1), module(2));
    for policy in ["", "--export-globals"] {
        let words = format!("{policy} --call f1 --call f2 --call f1 --name a @0 -- --name b @1");
        computes(&words, &[&one, &two], "f1() = 101\nf2() = 102\nf1() = 103\n");
    }
    // libstdc++ defines this symbol as an STB_GNU_UNIQUE object.
    let name = "_ZNSs4_Rep20_S_empty_rep_storageE";
    let text = format!(
        ".text\n.globl own\nown: mov {name}@GOTPCREL(%rip),%rax\nlea copy(%rip),%rcx\ncmp %rax,%rcx\nsete %al\nmovzbl %al,%eax\n\
         ret\n.bss\n.globl {name}\n.type {name},@gnu_unique_object\ncopy:\n{name}: .zero 32\n.size {name},32"
    );
    computes("--call own @0", &[&assembled("unique_process", &text)], "own() = 0\n");
}

#[test]
fn absolute_symbols_are_exported_and_reached_from_anywhere() {
    let numbers =
        assembled("numbers", ".globl small, large\n.set small, 0x1234\n.set large, 0x7fff12345678\n.text\nret");
    let user = c(
        "numbers_user",
        "extern char small[], large[]; long s(void) { return (long)small; } long l(void) { return (long)large; }",
        &[],
    );
    let expected = "s() = 4660\nl() = 140733498807928\n";
    computes("--export-globals --call s:i64 --call l:i64 --name a @0 -- --name b @1", &[&numbers, &user], expected);
    computes("--call s:i64 --call l:i64 --name a @0 @1", &[&numbers, &user], expected);
    // The same number twice counts as one definition, as for GNU ld. A different number is a second definition.
    let same = assembled("numbers_same", ".globl small\n.set small, 0x1234\n.text\nret");
    computes("--call s:i64 --name a @0 @2 @1", &[&numbers, &user, &same], "s() = 4660\n");
    let other = assembled("numbers_other", ".globl small\n.set small, 0x1235\n.text\nret");
    refused("--name a @0 @1", &[&numbers, &other], "\"small\" is defined in ");
    // A call of a function out of reach uses a PLT entry.
    let far = assembled("numbers_far", ".globl far\n.set far, 0x7fff12345678\n.text\nret");
    let go = ".text\n.globl go\ngo: test %edi,%edi\nje 1f\ncall far@PLT\n1: mov $5,%eax\nret";
    computes("--name a --call go=0 @0 @1", &[&far, &assembled("numbers_call", go)], "go(0) = 5\n");
}

#[test]
fn versioned_references_are_the_dynamic_linkers() {
    let both = "#include <string.h>
        void *old_memcpy(void *, const void *, size_t); __asm__(\".symver old_memcpy, memcpy@GLIBC_2.2.5\");
        void *new_memcpy(void *, const void *, size_t); __asm__(\".symver new_memcpy, memcpy@GLIBC_2.14\");
        int go(void) { char a[8] = \"abc\", b[8], d[8]; old_memcpy(b, a, 4); new_memcpy(d, b, 4); return strcmp(a, d) == 0; }
        int differ(void) { return (void *)old_memcpy != (void *)new_memcpy; }";
    computes("--call go --call differ @0", &[&c("symver", both, &[])], "go() = 1\ndiffer() = 1\n");
    let none = "int none(void); __asm__(\".symver none, memcpy@GLIBC_99\"); int go(void) { return none(); }";
    refused("@0", &[&c("symver_none", none, &[])], "\"memcpy@GLIBC_99\"");
}

#[test]
fn large_common_symbols_and_large_sections_are_laid_out() {
    let text =
        "int big[30000]; int filled[30000] = { 1, 2, 3 }; const int table[30000] = { 7, 8 }; static int bss[30000];
        int probe(void) { big[7] = 42; bss[9] = 1; return big[7] + filled[1] + table[1] + bss[9]; }";
    for flags in [
        &["-mcmodel=medium", "-fcommon", "-fno-pic"][..],
        &["-mcmodel=medium", "-fcommon", "-fPIC"],
        &["-mcmodel=large", "-fcommon"],
    ] {
        let file =
            object_from_text("large", Language::C, text, Compiler::Gcc, &[&["-O1", "-w"], flags].concat()).unwrap();
        computes("--call probe @0", &[&file], "probe() = 53\n");
        let other = c("large_other", "extern int big[]; int other(void) { return big[7]; }", &["-mcmodel=medium"]);
        computes("--call probe --call other --name m @0 @1", &[&file, &other], "probe() = 53\nother() = 42\n");
    }
}

#[test]
fn of_linkonce_sections_the_first_is_taken() {
    let part = |number: u32| {
        assembled(
            "linkonce",
            &format!(
                ".section .gnu.linkonce.t.once,\"ax\",@progbits\n.globl once\n.type once,@function\nonce: mov ${number},%eax\nret\n\
                 .size once,.-once\n.text\n.globl f{number}\nf{number}: jmp once@PLT"
            ),
        )
    };
    let (one, two) = (part(1), part(2));
    computes("--name m --call f1 --call f2 @0 @1", &[&one, &two], "f1() = 1\nf2() = 1\n");
    computes("--name m --call f1 --call f2 @1 @0", &[&one, &two], "f1() = 2\nf2() = 2\n");
}

#[test]
fn names_are_compared_as_linux_compares_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("my-mod.o");
    fs::copy(c("dashes", "int f(void) { return 1; }", &[]), &file).unwrap();
    for blocked in ["my_mod", "my-mod"] {
        refused(&format!("--block {blocked} @0"), &[&file], "its name is on the host's blocklist");
        refused(&format!("--block {blocked} --name my_mod @0"), &[&file], "its name is on the host's blocklist");
    }
    refused("@0 -- --name my_mod @0", &[&file], "already loaded");
    fs::write(dir.path().join("junk.o"), "no object").unwrap();
    for name in ["my_mod", "my-mod"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modload"));
        let output = command.args(["--call", "f", "--deps"]).arg(dir.path()).arg(name).output().unwrap();
        assert_eq!(text(&output.stdout), "f() = 1\n", "{name}: {}", text(&output.stderr));
    }
    let folder = dir.path().to_owned();
    refused("--deps @0 junk", &[&folder], "no ELF file at all");
}

/// Calls, traces and patches a function whose entry has N NOPs, M of them before the entry.
#[test]
fn entries_with_any_number_of_nops_are_called_traced_and_patched_where_that_can_be() {
    const TEXT: &str = "__attribute__((noinline)) int before(int n) { return n + 100; }
        __attribute__((noinline)) int leaf(int n) { __asm__ volatile(\"\"); return n + 1; } int probe(int n) { return leaf(n) + leaf(n); }";
    const FIX: &str = "#include <modload/livepatch.h>
        static int fixed(int n) { return n + 1000; }
        static struct klp_func funcs[] = { { .old_name = \"leaf\", .new_func = (void *)fixed }, {} };
        static struct klp_object objs[] = { { .name = \"entry\", .funcs = funcs }, {} };
        static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
        static int __init start(void) { return klp_enable_patch(&patch); }
        module_init(start);
        MODULE_LICENSE(\"Dual MIT/GPL\");
        MODULE_INFO(livepatch, \"Y\");";
    let sdk = format!("-I{}", workspace_root().join("sdk/include").display());
    let fix = c("entry_fix", FIX, &[&sdk]);
    let mut wrong = Vec::new();
    for compiler in [Compiler::Gcc, Compiler::Clang] {
        if compiler.find().is_none() {
            skipped(&format!("entries by {}: it is not installed", compiler.name()));
            continue;
        }
        for (nops, before) in (1..=16).flat_map(|nops| (0..=nops).map(move |before| (nops, before))) {
            for extra in ["-fcf-protection=none", "-fcf-protection=full"] {
                // The larger half of the combinations has the same results with ENDBR64.
                if extra.ends_with("full") && nops % 4 != 0 {
                    continue;
                }
                let entry = format!("-fpatchable-function-entry={nops},{before}");
                let mut flags = vec!["-O1", "-fPIC", &entry, extra];
                // A replacement function may use registers that the original function preserves.
                flags.extend((compiler == Compiler::Gcc).then_some("-fno-ipa-ra"));
                let file = object_from_text("entry", Language::C, TEXT, compiler, &flags).unwrap();
                let can = nops - before >= 5;
                let form = format!("{} {nops},{before} {extra}", compiler.name());
                let plain = modload("--call probe=1 --name entry @0", &[&file]);
                let traced = modload("--trace-functions leaf --call probe=1 --name entry @0", &[&file]);
                let patched = modload("--trace --call probe=1 --name entry @0 -- --name fix @1", &[&file, &fix]);
                if text(&plain.stdout) != "probe(1) = 4\n" {
                    wrong.push(format!("{form}: called: {}{}", text(&plain.stdout), text(&plain.stderr)));
                }
                let seen = text(&traced.stdout).matches("leaf").count();
                if !text(&traced.stdout).contains("probe(1) = 4\n") || seen != if can { 2 } else { 0 } {
                    wrong.push(format!("{form}: traced: {}{}", text(&traced.stdout), text(&traced.stderr)));
                }
                let patch_is_right = match can {
                    true => text(&patched.stdout).contains("probe(1) = 2002\n"),
                    // The reason is printed together with Linux's message.
                    false => {
                        let told = text(&patched.stdout) + &text(&patched.stderr);
                        told.contains("fix: init: init returned -22 (EINVAL)")
                            && told.contains("failed to find location for function 'leaf': ")
                            && told.contains("-fpatchable-function-entry=")
                    }
                };
                if !patch_is_right {
                    wrong.push(format!("{form}: patched: {}{}", text(&patched.stdout), text(&patched.stderr)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
