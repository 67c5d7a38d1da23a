//! Operations tables: calls through them become direct ones where the function is in reach, and stay calls through the
//! module's own copy of the table elsewhere.

use std::process::ExitCode;

use modload::{Host, Input};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Case, image_from_text};

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("calls_of_what_is_in_reach_are_direct", near),
        Case::new("calls_of_what_is_far_go_through_the_table", far),
        Case::new("who_names_another_table_is_told", other),
        Case::new("who_wants_more_than_the_table_has_is_told", larger),
        Case::new("explanations_stand_in_nobodys_way", together),
    ])
}

const PLUGIN: &str = "struct host_ops { long (*add)(long, long); long (*take)(long); };\n\
    extern const struct host_ops host_ops __attribute__((visibility(\"hidden\")));\n\
    long called(long a) { return host_ops.add(a, 2) + 1; }\n\
    long jumped(long a) { return host_ops.take(a); }\n\
    const struct host_ops *where(void) { return &host_ops; }\n";

extern "C" fn add(a: i64, b: i64) -> i64 {
    a + b
}

extern "C" fn take(a: i64) -> i64 {
    a - 1
}

fn results(host: &Host) {
    let plugin = host.load(&image_from_text("plugin", PLUGIN)).unwrap();
    // SAFETY: that is their type.
    let called = unsafe { plugin.symbol::<extern "C" fn(i64) -> i64>("called").unwrap() };
    // SAFETY: the same.
    let jumped = unsafe { plugin.symbol::<extern "C" fn(i64) -> i64>("jumped").unwrap() };
    assert_eq!((called(40), jumped(40)), (43, 39));
}

/// What becomes of the plugin's calls, by the engines that write them.
fn engines(host: &Host) -> Vec<String> {
    let object = object_from_text("plugin", Language::C, PLUGIN, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let input = Input { name: "plugin.o".into(), bytes: std::fs::read(object).unwrap().into() };
    let explained = ["called", "jumped"]
        .map(|function| host.explain(std::slice::from_ref(&input), "plugin", function).unwrap().changes);
    explained.into_iter().flatten().map(|change| change.engine).collect()
}

fn near() {
    let others = Host::builder().build().unwrap();
    let text = "long near_add(long a, long b) { return a + b; } long near_take(long a) { return a - 1; }";
    let provider = others.load(&image_from_text("provider", text)).unwrap();
    // SAFETY: only addresses are taken.
    let functions = ["near_add", "near_take"].map(|name| *unsafe { provider.symbol::<*const ()>(name).unwrap() });
    let host = Host::builder().operations("host_ops", &functions).build().unwrap();
    results(&host);
    assert_eq!(engines(&host), ["relocation", "paravirt site", "relocation", "paravirt site"]);
}

/// A host whose functions are in nobody's reach.
fn far_host() -> Host {
    let add: extern "C" fn(i64, i64) -> i64 = add;
    let take: extern "C" fn(i64) -> i64 = take;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let functions = [add as *const (), take as *const ()];
    Host::builder().operations("host_ops", &functions).build().unwrap()
}

fn far() {
    let host = far_host();
    results(&host);
    assert_eq!(engines(&host), ["relocation", "relocation"]);
}

fn other() {
    let host = Host::builder().operations("other_ops", &[]).build().unwrap();
    let refused = host.load(&image_from_text("plugin", PLUGIN)).unwrap_err().to_string();
    assert!(refused.contains("\"host_ops\""), "{refused}");
}

/// Not in that of a module whatever it is called, and not in each other's.
fn together() {
    let host = far_host();
    let named = host.load(&image_from_text("(plugin)", "int named(void) { return 1; }")).unwrap();
    assert_eq!(named.name(), "(plugin)");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(engines(&host), ["relocation", "relocation"])));
        }
    });
    assert_eq!(host.modules().len(), 1);
}

fn larger() {
    let host = Host::builder().operations("host_ops", &[std::ptr::null()]).build().unwrap();
    let refused = host.load(&image_from_text("plugin", PLUGIN)).unwrap_err().to_string();
    assert!(refused.contains("\"host_ops\"") && refused.contains("the host's table does not have"), "{refused}");
}
