//! Patches that are modules: the invalid records that are refused, and the cases that Linux's scenes do not cover.

use std::process::ExitCode;
use std::time::Duration;

use modload::error::sentence;
use modload::text::Addr;
use modload::timeline::EventKind;
use modload::trace::{Call, Filter, Redirect, Redirecting};
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, in_fork};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(a_patch_is_a_module),
        case!(records_that_cannot_be_followed_are_refused_by_name),
        case!(records_of_linux_are_read_by_their_size),
        case!(records_of_a_stripped_patch_are_read_by_what_it_states).needing("strip"),
        case!(records_of_unknown_size_are_refused_by_name),
        case!(only_init_enables_and_no_callback_does),
        case!(a_patch_goes_with_an_init_that_fails_behind_it),
        case!(a_target_without_a_struct_module_is_told_of),
        case!(a_target_whose_function_a_tracer_redirects_is_refused),
        case!(functions_that_are_not_there_are_refused_as_linux_does),
        case!(a_target_is_patched_after_one_without_the_function_was_refused),
        case!(a_callback_that_throws_refuses).needing("c++"),
        case!(lines_of_modules_are_lines),
        case!(shadow_variables_are_there_in_a_child),
    ])
}

const LIMIT: Duration = modload_tests::LONG;
const FLAGS: [&str; 4] = ["-O2", "-fPIC", "-fvisibility=hidden", "-fpatchable-function-entry=5"];

fn built(name: &str, language: Language, text: &str) -> Image<'static> {
    let object = object_from_text(name, language, text, Compiler::Cc, &FLAGS).unwrap_or_else(|error| panic!("{error}"));
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn host() -> Host {
    Host::builder().process_symbols().build().unwrap()
}

const TARGET: &str = "
__attribute__((noinline)) static int hidden(int a) { __asm__ volatile(\"\"); return a + 1; }
__attribute__((visibility(\"default\"))) int answer(int a) { return hidden(a); }
";

const HEAD: &str = r#"
#include <modload/livepatch.h>
#include <modload/printk.h>
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
"#;

/// A patch that is in order.
const PATCH: &str = r#"
static int new_hidden(int a) { return a + 101; }
static struct klp_func funcs[] = { { .old_name = "hidden", .new_func = (void *)new_hidden }, {} };
static struct klp_object objs[] = { { .name = "target", .funcs = funcs }, {} };
static struct klp_state states[] = { { .id = 1, .version = 1 }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .states = states };
static int __init start(void) { return klp_enable_patch(&patch); }
module_init(start);
"#;

fn text(of: &str) -> String {
    format!("{HEAD}{of}")
}

fn answer(target: &Module, argument: u64) -> u64 {
    // SAFETY: the function is an `int answer(int)`.
    unsafe { target.call("answer", &[argument]) }.unwrap() & 0xffff_ffff
}

/// The lines that a host has noted.
fn log_of(events: &[modload::timeline::Event]) -> Vec<String> {
    let line = |event: &modload::timeline::Event| match &event.kind {
        EventKind::Log { message } => Some(format!("{}: {message}", event.module)),
        _ => None,
    };
    events.iter().filter_map(line).collect()
}

fn a_patch_is_a_module() {
    let host = host();
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    assert_eq!(answer(&target, 1), 2);
    let patch = host.load(&built("patch", Language::C, &text(PATCH))).unwrap();
    assert_eq!(answer(&target, 1), 102);
    assert_eq!((patch.taint(), host.taint().as_str()), ("K", "KP"), "as Linux's TAINT_LIVEPATCH");
    drop(patch);
    assert!(host.unload("patch").is_err(), "the patch holds its module");
    host.disable_patch("patch").unwrap();
    host.unload_within("patch", LIMIT).unwrap();
    assert_eq!(answer(&target, 1), 2);
}

fn records_that_cannot_be_followed_are_refused_by_name() {
    let host = host();
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    let long = format!(".old_name = \"{}\"", "n".repeat(600));
    let endless = r#"static struct klp_func funcs[5000] = { [0 ... 4999] = { .old_name = "hidden", .new_func = (void *)new_hidden } };"#;
    let funcs = PATCH.lines().find(|line| line.contains("struct klp_func")).unwrap();
    let constant = "static struct klp_object objs[]";
    for (mistake, made, why) in [
        ("MODULE_INFO(livepatch, \"Y\");", "", "module patch is not marked as a livepatch module"),
        (".mod = THIS_MODULE", ".mod = NULL", "the patch's `mod` is not THIS_MODULE of patch"),
        (".objs = objs", ".objs = NULL", "the patch's `objs` is NULL"),
        (".objs = objs", ".objs = (struct klp_object *)64", "objects must lie completely in the module's own memory"),
        (".funcs = funcs", ".funcs = NULL", "an object's `funcs` is NULL"),
        (
            ".name = \"target\"",
            ".name = (const char *)64",
            "an object's `name` must lie completely in the module's own memory",
        ),
        (".old_name = \"hidden\"", ".old_name = NULL", "a function's `old_name` is NULL"),
        (".old_name = \"hidden\"", &long, "a function's `old_name` has more than 511 bytes"),
        ("(void *)new_hidden", "NULL", "`new_func` must be a function in the module's text"),
        ("(void *)new_hidden", "(void *)getenv", "`new_func` must be a function in the module's text"),
        ("int new_hidden", "int __init new_hidden", "`new_func` must be a function in the module's text that stays"),
        (
            ".funcs = funcs }",
            ".funcs = funcs, .callbacks = { .pre_patch = (void *)objs } }",
            "`pre_patch` must be a function in the module's text",
        ),
        (
            constant,
            "static struct klp_object __initdata objs[]",
            "an object must be a variable: neither constant, nor __initdata",
        ),
        (constant, "static struct klp_object __ro_after_init objs[]", "an object must be a variable"),
        ("struct klp_state states[]", "struct klp_state __initdata states[]", "a state must be a variable"),
        (funcs, endless, "there are more than 4096 functions: an array ends with an empty record"),
    ] {
        let right = text(&format!("char *getenv(const char *);\n{PATCH}"));
        assert!(right.contains(mistake), "{mistake}");
        let recording = host.record();
        let error = host.load(&built("patch", Language::C, &right.replacen(mistake, made, 1))).expect_err(why);
        assert_eq!((error.stage.to_string().as_str(), error.error.errno()), ("init", 22), "{made}: {error}");
        let log = log_of(&recording.finish().events);
        assert!(
            matches!(&log[..], [line] if line.starts_with(&format!("patch: livepatch: {why}"))),
            "{made}: {log:#?}"
        );
        assert!(host.patches().unwrap().is_empty() && answer(&target, 1) == 2 && host.modules().len() == 1);
    }
}

/// A patch with the records of a header that is not the SDK's: two objects with two functions each. A callback reads
/// the state of the first target from Linux's `struct module`, where the state is the first field.
fn foreign(func: usize, object: usize, patch: usize) -> String {
    let [func, object, patch] = [func - 24, object - 56, patch - 32];
    format!(
        r#"
#include <modload/module.h>
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
struct func {{ const char *old_name; void *new_func; unsigned long sympos; char internal[{func}]; }};
struct object {{ const char *name; struct func *funcs; void *callbacks[4]; _Bool enabled; char internal[{object}]; }};
struct patch {{ struct module *mod; struct object *objs; void *states; _Bool replace; char internal[{patch}]; }};
int klp_enable_patch(void *);
static int new_hidden(int a) {{ return a + 101; }}
static int new_shown(int a) {{ return a + 102; }}
static int state = -1;
static char seen[8];
static void post_patch(struct object *object)
{{
	const char *target = *(const char **)((char *)object + 152);
	state = *(const int *)target;
	for (int at = 0; at < 7; at++)
		seen[at] = target[24 + at];
}}
__attribute__((visibility("default"))) int state_is(int letter) {{ return state == 0 && seen[0] == letter; }}
static struct func funcs[] = {{
	{{ .old_name = "hidden", .new_func = (void *)new_hidden }}, {{ .old_name = "shown", .new_func = (void *)new_shown }}, {{}}
}};
static struct func second[] = {{
	{{ .old_name = "hidden", .new_func = (void *)new_hidden }}, {{ .old_name = "shown", .new_func = (void *)new_shown }}, {{}}
}};
static struct object objs[] = {{
	{{ .name = "target", .funcs = funcs, .callbacks = {{ 0, (void *)post_patch }} }}, {{ .name = "other", .funcs = second }}, {{}}
}};
static struct patch patch = {{ .mod = THIS_MODULE, .objs = objs }};
static int __init start(void) {{ return klp_enable_patch(&patch); }}
module_init(start);
"#
    )
}

const TWO: &str = "
__attribute__((noinline)) static int hidden(int a) { __asm__ volatile(\"\"); return a + 1; }
__attribute__((noinline)) static int shown(int a) { __asm__ volatile(\"\"); return a + 2; }
__attribute__((visibility(\"default\"))) int answer(int a) { return hidden(a) * 1000 + shown(a); }
";

fn records_of_linux_are_read_by_their_size() {
    let host = host();
    let target = host.load(&built("target", Language::C, TWO)).unwrap();
    let other = host.load(&built("other", Language::C, TWO)).unwrap();
    let patch = host.load(&built("patch", Language::C, &foreign(152, 168, 200))).unwrap();
    assert_eq!((answer(&target, 1), answer(&other, 1)), (102_103, 102_103), "no record is lost");
    // SAFETY: the function is an `int state_is(int)`.
    let is_told = unsafe { patch.call("state_is", &[u64::from(b't')]) }.unwrap();
    assert_eq!(is_told & 0xffff_ffff, 1, "MODULE_STATE_LIVE, and the target's name, where Linux has them");
    drop(patch);
    host.disable_patch("patch").unwrap();
    host.unload_within("patch", LIMIT).unwrap();
    assert_eq!((answer(&target, 1), answer(&other, 1)), (2003, 2003));
}

fn records_of_a_stripped_patch_are_read_by_what_it_states() {
    let host = host();
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    let object = object_from_text("patch", Language::C, &text(PATCH), Compiler::Cc, &FLAGS).unwrap();
    let bare = object.with_extension("stripped.o");
    let strip = std::process::Command::new("strip").arg("--strip-unneeded").arg("-o").arg(&bare).arg(&object).status();
    assert!(strip.unwrap().success());
    // SAFETY: the text is ours.
    let image = unsafe { Image::trusted(std::fs::read(bare).unwrap()) }.named("patch");
    let _patch = host.load(&image).unwrap();
    assert_eq!(answer(&target, 1), 102);
}

fn records_of_unknown_size_are_refused_by_name() {
    let host = host();
    let target = host.load(&built("target", Language::C, TWO)).unwrap();
    let can_be = "they can be those of modload/livepatch.h (64, 96, 96) or Linux 6.1 (152, 168, 200); compile it with one of these \
                  headers";
    let size = |what: &str, size: usize| {
        format!("the module's variable of type {what} has {size} bytes, which is no size of its records: {can_be}")
    };
    let unknown = "the size of the module's records of live patching is not known: include modload/livepatch.h, which states it in \
                   .modinfo, or keep the symbol of the struct klp_patch (strip --strip-debug does)";
    let linux = foreign(152, 168, 200);
    // The patch lies in the middle of a variable.
    let within = linux.replace(
        "static int __init start(void) { return klp_enable_patch(&patch); }",
        "static char room[400];\nstatic int __init start(void)\n{\n\t__builtin_memcpy(room + 8, &patch, sizeof(patch));\n\t\
         return klp_enable_patch(room + 8);\n}",
    );
    let stated = linux.replace("MODULE_LICENSE", "MODULE_INFO(klp_records, \"160,168,200\");\nMODULE_LICENSE");
    let two = linux.replace(
        "MODULE_LICENSE",
        "MODULE_INFO(klp_records, \"64,96,96\");\nMODULE_INFO(klp_records, \"152,168,200\");\nMODULE_LICENSE",
    );
    let wrong = linux.replace("MODULE_LICENSE", "MODULE_INFO(klp_records, \"64,96,96\");\nMODULE_LICENSE");
    let of_sizes = |sizes: &str| {
        format!(
            "the module's records of live patching have the sizes {sizes} (klp_func, klp_object, klp_patch), and none of \
             modload/livepatch.h (64, 96, 96) or Linux 6.1 (152, 168, 200): compile it with one of these headers"
        )
    };
    for (made, why) in [
        (foreign(152, 168, 208), size("struct klp_patch", 208)),
        (foreign(152, 184, 200), size("struct klp_object", 552)),
        (foreign(160, 168, 200), size("struct klp_func", 480)),
        (within, unknown.to_owned()),
        (stated, of_sizes("160,168,200")),
        (two, of_sizes("152,168,200 and 64,96,96")),
        (wrong, size("struct klp_patch", 200)),
    ] {
        let recording = host.record();
        let error = host.load(&built("patch", Language::C, &made)).expect_err(&why);
        assert_eq!((error.stage.to_string().as_str(), error.error.errno()), ("init", 22), "{error}");
        assert_eq!(log_of(&recording.finish().events), [format!("patch: livepatch: {why}")]);
        assert!(host.patches().unwrap().is_empty() && answer(&target, 1) == 2003 && host.modules().len() == 1);
    }
}

fn only_init_enables_and_no_callback_does() {
    let host = host();
    let late = PATCH.replace("module_init(start);", "").replace(" __init", "");
    let late = format!("{late} __attribute__((visibility(\"default\"))) int late(void) {{ return start(); }}");
    let module = host.load(&built("patch", Language::C, &text(&late))).unwrap();
    let recording = host.record();
    // SAFETY: the function is an `int late(void)`.
    let result = unsafe { module.call("late", &[]) }.unwrap();
    assert_eq!(result & 0xffff_ffff, u64::from((-22_i32).cast_unsigned()));
    let line = "patch: livepatch: module patch calls klp_enable_patch, but not from its init: call it from init";
    assert_eq!(log_of(&recording.finish().events), [line]);
    drop(module);
    host.unload("patch").unwrap();

    // The callback of the first call returns the -EDEADLK of the second call.
    let nested = PATCH.replace(".funcs = funcs }", ".funcs = funcs, .callbacks = { .pre_patch = again } }");
    let nested =
        nested.replace("static struct klp_object", "static int again(struct klp_object *);\nstatic struct klp_object");
    let nested = nested.replace(
        "static int __init",
        "static int again(struct klp_object *object) { (void)object; return klp_enable_patch(&patch); }\nstatic int __init",
    );
    let _target = host.load(&built("target", Language::C, TARGET)).unwrap();
    let error = host.load(&built("patch", Language::C, &text(&nested))).expect_err("its callback refuses");
    assert_eq!(error.error.errno(), 35, "{error}");
    assert!(host.patches().unwrap().is_empty());
}

fn a_patch_goes_with_an_init_that_fails_behind_it() {
    let host = host();
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    // Live patching keeps the memory that it has allocated for its own use.
    host.load(&built("patch", Language::C, &text(PATCH))).unwrap();
    host.disable_patch("patch").unwrap();
    host.unload_within("patch", LIMIT).unwrap();
    let before = host.memory();
    let fails =
        PATCH.replace("return klp_enable_patch(&patch);", "return klp_enable_patch(&patch) ? -EBUSY : -ENODEV;");
    let error = host.load(&built("patch", Language::C, &text(&fails))).expect_err("it says so");
    assert_eq!(error.error.errno(), 19, "{error}");
    assert!(host.patches().unwrap().is_empty());
    assert_eq!(answer(&target, 1), 2);
    let used = |usage: [modload::text::StripeUsage; 4]| usage.map(|stripe| stripe.used);
    assert_eq!(used(host.memory()), used(before), "nothing of it is left");
    host.load(&built("patch", Language::C, &text(PATCH))).unwrap();
    assert_eq!(answer(&target, 1), 102);
}

/// Logs the targets of its callbacks: name and state.
const TELLS: &str = r#"
static int new_hidden(int a) { return a + 101; }
static struct klp_func funcs[] = { { .old_name = "hidden", .new_func = (void *)new_hidden }, {} };
static void tell(struct klp_object *object)
{
	if (object->mod)
		pr_info("%s is %d\n", object->mod->name, object->mod->state);
	else
		pr_info("nobody\n");
}
static int tell_first(struct klp_object *object) { tell(object); return 0; }
static struct klp_object objs[] = {
	{ .name = "target", .funcs = funcs, .callbacks = { tell_first, tell, tell, tell } }, {}
};
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
static int __init start(void) { return klp_enable_patch(&patch); }
module_init(start);
__attribute__((visibility("default"))) int is_there(void) { return objs[0].mod != NULL; }
"#;

fn a_target_without_a_struct_module_is_told_of() {
    let host = host();
    let patch = host.load(&built("patch", Language::C, &text(TELLS))).unwrap();
    // SAFETY: the function is an `int is_there(void)`.
    let is_there = || unsafe { patch.call("is_there", &[]) }.unwrap();
    let recording = host.record();
    for _ in 0..2 {
        assert_eq!(is_there(), 0);
        let target = host.load(&built("target", Language::C, TARGET)).unwrap();
        assert!(target.this_module().is_none() && is_there() == 1);
        target.unload().unwrap();
    }
    assert_eq!(is_there(), 0);
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    host.disable_patch("patch").unwrap();
    assert_eq!((answer(&target, 1), is_there()), (2, 0), "gone with its patch");
    let told = log_of(&recording.finish().events).into_iter().filter(|line| line.contains(" is ")).collect::<Vec<_>>();
    let (coming, going, live) = ("patch: target is 1", "patch: target is 2", "patch: target is 0");
    assert_eq!(told, [coming, coming, going, going, coming, coming, going, going, coming, coming, live, live]);
}

/// Takes over functions, and sends each call to its usual target.
struct Taken;

impl Redirect for Taken {
    fn redirect(&self, _: &Call<'_>) -> Option<Addr> {
        None
    }
}

fn a_target_whose_function_a_tracer_redirects_is_refused() {
    let host = host();
    host.load(&built("patch", Language::C, &text(TELLS))).unwrap();
    let filter = || "target:hidden".parse::<Filter>().unwrap();
    // SAFETY: the redirection changes no call's target.
    let redirecting = || unsafe { Redirecting::new(Taken) };
    let taken = host.redirect(filter(), redirecting()).unwrap();
    let recording = host.record();
    let error = host.load(&built("target", Language::C, TARGET)).expect_err("two cannot say where its calls go");
    assert_eq!(error.error.errno(), 16, "{error}");
    assert_eq!(
        log_of(&recording.finish().events),
        [
            "patch: livepatch: applying patch 'patch' to loading module 'target'",
            "patch: target is 1",
            "patch: livepatch: failed to register ftrace handler for function 'hidden' (-16)",
            "patch: livepatch: failed to apply patch 'patch' to module 'target' (-16)",
            "patch: target is 1",
            "patch: livepatch: patch 'patch' failed for module 'target', refusing to load module 'target'",
        ]
    );
    drop(taken);
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    assert_eq!(answer(&target, 1), 102);
    assert!(host.redirect(filter(), redirecting()).is_err(), "and the other way round");
    host.disable_patch("patch").unwrap();
    let _taken = host.redirect(filter(), redirecting()).unwrap();
    assert_eq!(answer(&target, 1), 2);
}

fn a_target_is_patched_after_one_without_the_function_was_refused() {
    let host = host();
    host.load(&built("patch", Language::C, &text(PATCH))).unwrap();
    for _ in 0..2 {
        let lacking = built("target", Language::C, "int answer(int a) { return a + 1; }");
        let error = host.load(&lacking).expect_err("it has no function \"hidden\"");
        assert!(sentence(&error).contains("hidden"), "{error:?}");
    }
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    assert_eq!(answer(&target, 1), 102);
}

fn functions_that_are_not_there_are_refused_as_linux_does() {
    const TWICE: &str = "
    __attribute__((noinline)) static int hidden(int a) { __asm__ volatile(\"\"); return a + 1; }
    int answer(int a) { return hidden(a); }
    ";
    let host = host();
    let target = host.load(&built("target", Language::C, TARGET)).unwrap();
    for (wrong, line) in [
        (".old_name = \"gone\"", "symbol 'gone' not found in symbol table"),
        (
            ".old_sympos = 2, .old_name = \"hidden\"",
            "symbol position '2' for symbol 'hidden' in object 'target' not found",
        ),
    ] {
        let recording = host.record();
        let module = built("patch", Language::C, &text(&PATCH.replace(".old_name = \"hidden\"", wrong)));
        let error = host.load(&module).expect_err(line);
        assert_eq!(error.error.errno(), 22, "{error}");
        assert_eq!(log_of(&recording.finish().events), [format!("patch: livepatch: {line}")]);
    }
    target.unload().unwrap();

    // Two functions of one name, from two files.
    let objects = [TWICE, &TWICE.replace("answer", "other").replace("a + 1", "a + 2")]
        .map(|text| object_from_text("target", Language::C, text, Compiler::Cc, &FLAGS).unwrap());
    let inputs = objects
        .iter()
        .zip(["a.o", "b.o"])
        .map(|(object, name)| modload::Input { name: name.into(), bytes: std::fs::read(object).unwrap().into() });
    // SAFETY: the texts are ours.
    let twice = unsafe { Image::trusted_unit(inputs.collect()) }.named("target");
    let target = host.load(&twice).unwrap();
    let recording = host.record();
    let error = host.load(&built("patch", Language::C, &text(PATCH))).expect_err("it does not say which");
    assert_eq!(error.error.errno(), 22, "{error}");
    let line = "patch: livepatch: unresolvable ambiguity for symbol 'hidden' in object 'target'";
    assert_eq!(log_of(&recording.finish().events), [line]);
    let second = PATCH.replace(".old_name = \"hidden\"", ".old_sympos = 2, .old_name = \"hidden\"");
    host.load(&built("patch", Language::C, &text(&second))).unwrap();
    // SAFETY: both are `int f(int)`.
    let results = ["answer", "other"].map(|name| unsafe { target.call(name, &[1]) }.unwrap());
    assert_eq!(results, [2, 102]);
}

fn a_callback_that_throws_refuses() {
    // SAFETY: the library's constructors ask for nothing.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null(), "a C++ compiler brings it");
    let host = host();
    let throws = r#"
#include <modload/livepatch.h>
MODULE_INFO(livepatch, "Y");
MODULE_LICENSE("GPL");
static int pre_patch(struct klp_object *) { throw 1; }
static struct klp_func funcs[] = { {} };
static struct klp_object objs[] = { { nullptr, funcs, { pre_patch, nullptr, nullptr, nullptr, false }, nullptr, {} }, {} };
static struct klp_patch patch = { THIS_MODULE, objs, nullptr, false, {} };
static int __init start(void) { return klp_enable_patch(&patch); }
module_init(start);
"#;
    let error = host.load(&built("patch", Language::Cxx, throws)).expect_err("its callback has thrown");
    assert_eq!(error.error.errno(), 5, "{error}");
    assert!(host.patches().unwrap().is_empty());
}

fn lines_of_modules_are_lines() {
    let host = host();
    let recording = host.record();
    let says = r#"
#include <modload/printk.h>
static int __init start(void)
{
	pr_info("one %d %s\n", 1, "'two'");
	pr_err("a\tb\nc");
	pr_warn("\033[31mred\a\n");
	pr_notice("%01500d\n", 0);
	pr_info("");
	return 0;
}
module_init(start);
"#;
    host.load(&built("says", Language::C, says)).unwrap();
    let long = format!("says: {}", "0".repeat(1023));
    let expected = ["says: one 1 'two'", "says: a\tb", "says: c", "says: \\u{1b}[31mred\\u{7}", &long];
    assert_eq!(log_of(&recording.finish().events), expected);
}

fn shadow_variables_are_there_in_a_child() {
    let host = host();
    let keeps = r#"
#include <modload/livepatch.h>
static int object;
static int fill(void *of, void *data, void *from) { (void)of; *(int *)data = *(int *)from; return 0; }
__attribute__((visibility("default"))) int make(int value)
{
	int *data = klp_shadow_get_or_alloc(&object, 1, sizeof(int), GFP_KERNEL, fill, &value);
	return data ? *data : -1;
}
__attribute__((visibility("default"))) int drop(void) { klp_shadow_free(&object, 1, NULL); return 0; }
"#;
    let module = host.load(&built("keeps", Language::C, keeps)).unwrap();
    // SAFETY: the functions are an `int make(int)` and an `int drop(void)`.
    let call = |name: &str, arguments: &[u64]| unsafe { module.call(name, arguments) }.unwrap();
    assert_eq!(call("make", &[7]), 7);
    let ended = in_fork(|| {
        assert_eq!(call("make", &[8]), 7);
        call("drop", &[]);
        assert_eq!(call("make", &[8]), 8);
    });
    ended.well();
    assert_eq!(call("make", &[9]), 7, "the child's is another");
}
