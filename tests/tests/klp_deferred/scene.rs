//! Targets and patches from texts.

use std::fs;

use modload::patch::link as klp_link;
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};

/// How a patch may be compiled: with tables, without, for the low 2 GiB, without optimisation.
pub(crate) const WAYS: [(Compiler, &[&str]); 6] = [
    (Compiler::Gcc, &["-O2", "-fPIC"]),
    (Compiler::Gcc, &["-O2", "-fPIC", "-fno-plt"]),
    (Compiler::Gcc, &["-O2", "-fno-pic", "-mcmodel=kernel", "-mno-red-zone"]),
    (Compiler::Gcc, &["-O0", "-fPIC"]),
    (Compiler::Clang, &["-O2", "-fPIC"]),
    (Compiler::Clang, &["-O1", "-fno-pic", "-mcmodel=kernel", "-mno-red-zone"]),
];

const ENTRY: &str = "-fpatchable-function-entry=5";

pub(crate) const HEAD: &str = r#"
#include <modload/jump_label.h>
#include <modload/livepatch.h>
#include <modload/printk.h>
#include <modload/static_call.h>
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
"#;

/// The end of a patch of one function of the target, `answer`.
pub(crate) const TAIL: &str = r#"
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = (void *)new_answer }, {} };
static struct klp_object objs[] = { { .name = "target", .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
static int __init start(void) { return klp_enable_patch(&patch); }
module_init(start);
static void __exit stop(void) { }
module_exit(stop);
"#;

/// Returns the text of a patch whose init does not enable the patch.
pub(crate) fn not_enabling(patch: &str) -> String {
    let patch = patch.replace("static int new_answer", "__attribute__((used)) static int new_answer");
    patch + &TAIL.replace("return klp_enable_patch(&patch);", "(void)patch; return 0;")
}

pub(crate) fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

/// Returns a module as the compiler makes it.
pub(crate) fn built(name: &str, text: &str) -> Image<'static> {
    loaded(name, object(name, text, WAYS[0]))
}

fn object(name: &str, text: &str, (compiler, flags): (Compiler, &[&str])) -> Vec<u8> {
    let flags: Vec<_> = flags.iter().copied().chain([ENTRY]).collect();
    let object = object_from_text(name, Language::C, text, compiler, &flags).unwrap_or_else(|error| panic!("{error}"));
    fs::read(object).unwrap()
}

pub(crate) fn loaded(name: &str, bytes: Vec<u8>) -> Image<'static> {
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(bytes) }.named(name)
}

/// Returns a patch that `modhost klp-link` makes from the output of the compiler.
pub(crate) fn linked(name: &str, text: &str, way: (Compiler, &[&str])) -> Image<'static> {
    loaded(name, linked_bytes(text, way))
}

/// The same as a file.
pub(crate) fn linked_bytes(text: &str, way: (Compiler, &[&str])) -> Vec<u8> {
    let object = object("patch", &format!("{HEAD}{text}"), way);
    klp_link::link(&object).unwrap_or_else(|error| panic!("{way:?}: {error}")).bytes
}

/// Calls an `int f(int)`.
pub(crate) fn call(module: &Module, function: &str, argument: u64) -> u64 {
    // SAFETY: the texts define the functions with this type.
    unsafe { module.call(function, &[argument]) }.unwrap() & 0xffff_ffff
}

/// Returns the bytes of a module's sections whose names begin with one of `names`.
pub(crate) fn bytes(module: &Module, names: &[&str]) -> Vec<(String, Vec<u8>)> {
    let named = module.sections().filter(|section| names.iter().any(|name| section.name.starts_with(name)));
    named
        .map(|section| {
            (section.name.clone(), modload_tests::peek(section.addr, usize::try_from(section.size).unwrap()))
        })
        .collect()
}
