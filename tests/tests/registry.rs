//! The references between modules, the reasons why a module stays, and the state after a host is dropped; and every
//! fixture through the library.

use std::process::ExitCode;

use modload::error::{PrepareError, sentence};
use modload::text::{Addr, Arena};
use modload::timeline::{EventKind, Outcome};
use modload::{Error, Host, Module, Order, Stage, State, SymbolError, UnloadError};
use modload_fixtures::{Case as FixtureCase, Compiler, Expectations, Fixture, Language};
use modload_tests::{Log, Watcher, case, image, image_from_text, in_fork, object};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(every_fixture_does_what_its_first_lines_say).within_seconds(240),
        case!(a_module_in_use_names_its_users),
        case!(a_held_symbol_keeps_its_module),
        case!(a_symbol_of_init_cannot_be_held),
        case!(functions_are_listed_under_each_of_their_names),
        case!(dropping_the_host_unloads_in_reverse_order),
        case!(dropping_the_host_leaves_what_is_held),
        case!(what_is_not_there_cannot_be_unloaded),
        case!(a_positive_init_is_live_with_a_warning),
        case!(constructors_and_destructors_run_in_order),
        case!(destructors_run_when_init_fails_and_exit_does_not),
        case!(a_module_hears_of_modules_and_refuses_one),
        case!(a_notifier_left_registered_is_taken_out),
        case!(a_notifier_belongs_to_the_module_its_block_lies_in),
        case!(gpl_only_exports_are_for_compatible_licences),
        case!(a_namespace_must_be_imported),
        case!(all_missing_symbols_are_reported_with_place_and_nearest_name),
        case!(two_modules_cannot_export_one_symbol),
        case!(a_write_to_ro_after_init_is_a_segmentation_fault),
        case!(host_exports_come_before_modules_and_gpl_ones_are_guarded),
        case!(two_hosts_do_not_see_each_other),
        case!(parameters_show_their_values),
    ])
}

fn host() -> Host {
    Host::builder().build().unwrap()
}

fn call(module: &Module, name: &str, arguments: &[u64]) -> u64 {
    // SAFETY: the tests call functions that take and return integers.
    unsafe { module.call(name, arguments) }.unwrap()
}

/// The result of an `int` function.
fn int(module: &Module, name: &str, arguments: &[u64]) -> i32 {
    let low = u32::try_from(call(module, name, arguments) & 0xffff_ffff).unwrap();
    low.cast_signed()
}

fn names(host: &Host) -> Vec<String> {
    host.modules().into_iter().map(|(name, _)| name).collect()
}

/// Returns the result of a call, printed by the type.
fn shown(result_type: &str, result: u64) -> String {
    let low = u32::try_from(result & 0xffff_ffff).unwrap();
    match result_type {
        "u32" => low.to_string(),
        "i64" => result.cast_signed().to_string(),
        "u64" => result.to_string(),
        "void" => String::new(),
        _ => low.cast_signed().to_string(),
    }
}

fn load(host: &Host, fixture: &Fixture, case: &FixtureCase, params: &[String]) -> Result<Module, modload::LoadError> {
    let compiler = if fixture.language().unwrap() == Language::Rust { Compiler::Rustc } else { Compiler::Cc };
    let object = fixture.object_of(case, compiler).unwrap();
    // SAFETY: the fixtures are ours.
    let image = unsafe { modload::read_trusted(object) }.unwrap();
    host.load(&params.iter().fold(image, modload::Image::param))
}

fn every_fixture_does_what_its_first_lines_say() {
    let mut cases = 0;
    for fixture in Fixture::all().unwrap() {
        for case in fixture.cases().unwrap() {
            let of_clang_alone = case.compilers == [Compiler::Clang];
            // Fixtures that need symbols of a special host have cases of their own.
            if !case.expect.host.is_empty() || of_clang_alone {
                continue;
            }
            one_fixture(&fixture, &case);
            cases += 1;
        }
    }
    assert!(cases > 40, "only {cases}");
}

fn one_fixture(fixture: &Fixture, case: &FixtureCase) {
    let what = format!("{} {}", fixture.name(), case.way);
    let Expectations { after, params, then, calls, errors, warnings, .. } = &case.expect;
    let host = Host::builder().linux_operations().process_symbols().export_globals().build().unwrap();
    let recording = host.record();
    let usage = used();
    let companion = |load: &modload_fixtures::FixtureLoad| {
        let fixture = Fixture::new(&load.fixture);
        let case = fixture.cases().unwrap().remove(0);
        self::load(&host, &fixture, &case, &load.params)
    };
    let mut modules: Vec<Module> = after.iter().map(|load| companion(load).unwrap()).collect();
    let loaded = load(&host, fixture, case, params);
    let mut refusals = Vec::new();
    for result in std::iter::once(loaded).chain(then.iter().map(companion)) {
        match result {
            Ok(module) => modules.push(module),
            Err(refused) => refusals.push(sentence(&refused)),
        }
    }
    assert_eq!(refusals.is_empty(), errors.is_empty(), "{what}: {refusals:?}");
    for error in errors {
        assert!(refusals.concat().contains(error), "{what}: {error}: {refusals:?}");
    }
    for wanted in calls {
        let holder = modules.iter().rev().find(|module| module.symbol_info(&wanted.symbol).is_some());
        let holder = holder.unwrap_or_else(|| panic!("{what}: nobody has {}", wanted.symbol));
        let result = call(holder, &wanted.symbol, &wanted.arguments);
        assert_eq!(shown(&wanted.result_type, result), wanted.result, "{what}: {}", wanted.symbol);
    }
    let timeline = recording.finish().to_string();
    for warning in warnings {
        let said = timeline.lines().any(|line| line.contains("warning") && line.contains(warning));
        assert!(said, "{what}: {warning}:\n{timeline}");
    }
    // A patch that is enabled keeps its module.
    let left = host.disable_patches(modload_tests::LONG).unwrap();
    assert!(left.is_empty(), "{what}: {left:?}");
    while let Some(module) = modules.pop() {
        module.unload().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    assert!(host.modules().is_empty(), "{what}");
    assert_eq!(used(), usage, "{what}");
}

fn a_module_in_use_names_its_users() {
    let host = host();
    let greet = host.load(&image("greet")).unwrap();
    let guest = host.load(&image("guest")).unwrap();
    let second = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint greet_count(void);\nint counted(void);\n\
                  int counted(void) { return greet_count(); }\n";
    let second = host.load(&image_from_text("second", second)).unwrap();
    assert_eq!(greet.users(), ["guest", "second"]);
    assert_eq!(guest.uses(), ["greet"]);
    drop(greet);
    let refused = host.unload("greet").unwrap_err();
    assert!(
        matches!(&refused, UnloadError::InUse { by, references: 0, .. } if by == &["guest", "second"]),
        "{refused}"
    );
    assert_eq!(refused.to_string(), "greet: in use by guest, second");
    let held = host.module("greet").unwrap();
    let refused = host.unload("greet").unwrap_err().to_string();
    assert_eq!(refused, "greet: in use by guest, second (1 reference is held)");
    drop(held);
    // The module is unchanged.
    assert_eq!(int(&guest, "guest_heard", &[]), 2);
    guest.unload().unwrap();
    assert_eq!(host.unload("greet").unwrap_err().to_string(), "greet: in use by second");
    second.unload().unwrap();
    host.unload("greet").unwrap();
    assert!(host.modules().is_empty());
}

fn a_held_symbol_keeps_its_module() {
    let host = host();
    let module = host.load(&image("greet")).unwrap();
    // SAFETY: the type of greet_hello.
    let hello = unsafe { module.symbol::<extern "C" fn() -> i32>("greet_hello") }.unwrap();
    let refused = host.unload("greet").unwrap_err();
    assert!(matches!(refused, UnloadError::InUse { references: 1, .. }), "{refused}");
    let clone = module.clone();
    assert_eq!(host.unload("greet").unwrap_err().to_string(), "greet: in use (2 references are held)");
    assert_eq!(hello(), 1);
    assert_eq!(module.references(), 2);
    clone.unload().unwrap_err();
    assert_eq!(module.references(), 1);
    // SAFETY: never called.
    let nothing = unsafe { module.symbol::<extern "C" fn()>("greet_helo") }.unwrap_err();
    assert!(matches!(nothing, SymbolError::NotFound { .. }));
    // SAFETY: never called, because the symbol is a variable.
    let variable = unsafe { module.call("count", &[]) }.unwrap_err();
    assert!(matches!(variable, SymbolError::NotAFunction { .. }));
    module.unload().unwrap();
}

/// Looks up a symbol of init while the module is LIVE and its init sections still exist.
struct Hasty(modload::WeakHost, Log);

impl modload::Subscriber for Hasty {
    fn live(&self, module: &modload::ModuleInfo) {
        assert!(module.symbol_info("add_up").is_some(), "it is there");
        let held = self.0.upgrade().unwrap().module(module.name()).unwrap();
        // SAFETY: never called.
        let found = unsafe { held.symbol::<extern "C" fn(i32) -> i32>("add_up") };
        self.1.push(found.unwrap_err().to_string());
    }
}

fn a_symbol_of_init_cannot_be_held() {
    let (host, log) = (host(), Log::default());
    host.subscribe("hasty", Order::mirrored(0), Hasty(host.downgrade(), log.clone())).forget();
    host.load(&image("init_sections")).unwrap();
    assert_eq!(log.take(), ["init_sections has no symbol \"add_up\""]);
}

const FUNCTIONS: &str = r#"
#define SITE __attribute__((patchable_function_entry(5), noinline))
int beta(int x), gamma(int x), alpha(int x), variable = 7;
static SITE int local(int x) { return x * 3 + variable; }
SITE int beta(int x) { return local(x) + 1; }
int gamma(int x) __attribute__((alias("beta")));
int alpha(int x) __attribute__((alias("beta")));
static int aardvark(int x) __attribute__((alias("beta"), used));
__asm__(".text\n.globl \"q\tq\"\n.type \"q\tq\", @function\n\"q\tq\": ret\n.globl untyped\nuntyped: ret\n");
int __attribute__((section(".init.text"))) init_module(void);
int __attribute__((section(".init.text"))) init_module(void) { return 0; }
"#;

/// Returns the functions of a module by address: the names, in sorted order, and whether the function is init code.
fn by_address(module: &modload::ModuleInfo) -> Vec<(Addr, Vec<String>, bool)> {
    let functions = module.functions();
    assert!(functions.is_sorted_by_key(|function| function.addr));
    let of = |same: &[modload::module::FunctionSymbol]| {
        let names = same.iter().map(|function| function.name.clone()).collect();
        (same[0].addr, names, same[0].is_init)
    };
    functions.chunk_by(|one, other| one.addr == other.addr).map(of).collect()
}

/// Inspects a module while the module is COMING: its functions, and the compiler's table of their sites.
struct Tracer(Log);

impl modload::Subscriber for Tracer {
    fn coming(&self, coming: &mut modload::Coming<'_>) -> Result<(), modload::Refusal> {
        let functions = by_address(coming.module());
        for section in coming.sections("__patchable_function_entries") {
            for record in section.bytes.chunks(8) {
                let at = Addr::new(u64::from_le_bytes(record.try_into().unwrap()));
                let function = functions.iter().find(|(addr, ..)| *addr == at).unwrap();
                self.0.push(format!("site at {}", function.1.join("=")));
            }
        }
        let init = functions.iter().filter(|(.., is_init)| *is_init);
        init.for_each(|(_, names, _)| self.0.push(format!("init: {}", names.join("="))));
        Ok(())
    }
}

fn functions_are_listed_under_each_of_their_names() {
    let (host, log) = (host(), Log::default());
    host.subscribe("tracer", Order::mirrored(0), Tracer(log.clone())).forget();
    let module = host.load(&image_from_text("functions", FUNCTIONS)).unwrap();
    let mut heard = log.take();
    heard.sort();
    assert_eq!(heard, ["init: init_module", "site at alpha=beta=gamma=aardvark", "site at local"]);
    let mut names: Vec<_> = by_address(&module).into_iter().map(|(_, names, _)| names.join("=")).collect();
    names.sort();
    assert_eq!(names, ["alpha=beta=gamma=aardvark", "local", "q\\tq"], "what is init's is gone");
    let functions = module.functions();
    let sizes: Vec<_> = functions.iter().filter(|function| function.name != "local").map(|one| one.size).collect();
    let stated = sizes.iter().filter(|size| **size > 5).count();
    assert!(stated == 4 && sizes.contains(&0), "{sizes:?}");
    assert!(functions.iter().all(|function| module.contains(function.addr)));
    module.unload().unwrap();
}

fn used() -> [u64; 4] {
    Arena::get().unwrap().usage().map(|stripe| stripe.used)
}

fn dropping_the_host_unloads_in_reverse_order() {
    let log = Log::default();
    let host = host();
    let empty = used();
    host.subscribe("watcher", Order::mirrored(0), Watcher::new("watcher", &log)).forget();
    for fixture in ["greet", "recorder", "guest", "ctors_c"] {
        drop(host.load(&image(fixture)).unwrap());
    }
    let before = log.take();
    assert_eq!(before.len(), 8);
    drop(host);
    let modules = ["ctors_c", "guest", "recorder", "greet"];
    assert_eq!(log.take(), modules.map(|module| format!("GOING watcher {module}")));
    assert_eq!(used(), empty);
}

fn dropping_the_host_leaves_what_is_held() {
    let host = host();
    let empty = used();
    let held = host.load(&image("greet")).unwrap();
    drop(host.load(&image("recorder")).unwrap());
    drop(host);
    assert_eq!(held.state(), Some(State::Live), "left in memory, and usable");
    assert_eq!(int(&held, "greet_hello", &[]), 1);
    // A new host has none of these modules.
    let other = self::host();
    assert!(other.modules().is_empty());
    other.load(&image("greet")).unwrap().unload().unwrap();
    held.unload().unwrap();
    assert_eq!(used(), empty);
}

fn what_is_not_there_cannot_be_unloaded() {
    let host = host();
    assert_eq!(host.unload("nobody").unwrap_err().to_string(), "nobody: no module of this name is loaded");
    assert!(host.module("nobody").is_none());
    host.load(&image("ordtarget").param("fail=-19")).unwrap_err();
    assert!(matches!(host.unload("ordtarget"), Err(UnloadError::NotFound(_))));
}

fn a_positive_init_is_live_with_a_warning() {
    let host = host();
    let recording = host.record();
    let module = host.load(&image("init_positive")).unwrap();
    assert_eq!((module.state(), int(&module, "init_positive_ran", &[])), (Some(State::Live), 1));
    let warned = recording.finish().events.into_iter().any(|event| match event.kind {
        EventKind::Warning { message } => message.contains("init suspiciously returned 3"),
        _ => false,
    });
    assert!(warned);
}

/// Returns the numbers that `recorder` has stored.
fn recorded(recorder: &Module) -> Vec<i32> {
    let count = u64::try_from(int(recorder, "recorded_count", &[])).unwrap();
    (0..count).map(|at| int(recorder, "recorded", &[at])).collect()
}

fn constructors_and_destructors_run_in_order() {
    let host = Host::builder().process_symbols().build().unwrap();
    let recorder = host.load(&image("recorder")).unwrap();
    let cases = [
        ("ctors_c", vec![1, 2, 3, 4, 5, 6, 7, 8], 4),
        ("ctors_cxx", vec![10, 20, 30, 40, 21, 11], 3),
        ("ctors_old", vec![1, 2, 3, 4], 2),
    ];
    for (fixture, all, coming) in cases {
        call(&recorder, "recorder_clear", &[]);
        let module = host.load(&image(fixture)).unwrap();
        assert_eq!(recorded(&recorder), all[..coming], "{fixture}");
        assert!(host.unload("recorder").unwrap_err().to_string().contains(fixture));
        module.unload().unwrap();
        assert_eq!(recorded(&recorder), all, "{fixture}");
    }
}

fn destructors_run_when_init_fails_and_exit_does_not() {
    let host = host();
    let recorder = host.load(&image("recorder")).unwrap();
    let text = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nvoid record(int number);\n\
                static int fail; module_param(fail, int, 0);\n\
                __attribute__((constructor)) static void begin(void) { record(1); }\n\
                __attribute__((destructor)) static void end(void) { record(9); }\n\
                static int __init start(void) { record(2); return fail; }\nmodule_init(start);\n\
                static void __exit stop(void) { record(8); }\nmodule_exit(stop);\n";
    let image = image_from_text("built", text);
    host.load(&image.clone().param("fail=-5")).unwrap_err();
    assert_eq!(recorded(&recorder), [1, 2, 9]);
    // A parameter is refused before the constructors run, so there is nothing to undo.
    call(&recorder, "recorder_clear", &[]);
    host.load(&image.clone().param("fail=x")).unwrap_err();
    assert_eq!(recorded(&recorder), [0; 0]);
    host.load(&image).unwrap().unload().unwrap();
    assert_eq!(recorded(&recorder), [1, 2, 8, 9]);
}

/// The log of `notifier_user`: states and names.
fn heard(module: &Module) -> Vec<(i32, String)> {
    let length = u64::try_from(int(module, "log_length", &[])).unwrap();
    let letter = |entry, at| u8::try_from(int(module, "log_letter", &[entry, at])).unwrap();
    let name = |entry| (0..56).map(|at| letter(entry, at)).take_while(|&letter| letter != 0).map(char::from).collect();
    (0..length).map(|entry| (int(module, "log_state", &[entry]), name(entry))).collect()
}

fn a_module_hears_of_modules_and_refuses_one() {
    const LIVE: i32 = 0;
    const COMING: i32 = 1;
    const GOING: i32 = 2;
    let host = host();
    let user = host.load(&image("notifier_user").param("refuse=ordtarget").param("refuse_errno=16")).unwrap();
    let recording = host.record();
    host.load(&image("greet")).unwrap().unload().unwrap();
    let entry = |state, name: &str| (state, name.to_owned());
    assert_eq!(heard(&user), [entry(COMING, "greet"), entry(LIVE, "greet"), entry(GOING, "greet")]);
    call(&user, "log_clear", &[]);
    let refused = host.load(&image("ordtarget")).unwrap_err();
    assert_eq!((refused.stage, refused.error.errno()), (Stage::Coming, 16));
    assert_eq!(heard(&user), [entry(COMING, "ordtarget")], "who refuses does not hear of GOING");
    let by = recording.finish().events.into_iter().find_map(|event| match event.kind {
        EventKind::Notify { subscriber, result: Outcome::Refused(_), .. } => Some(subscriber),
        _ => None,
    });
    assert!(by.is_some_and(|by| by.starts_with("notifier_user")));
    user.unload().unwrap();
    host.load(&image("ordtarget")).unwrap().unload().unwrap();
}

fn a_notifier_left_registered_is_taken_out() {
    let host = host();
    let leak = host.load(&image("notifier_leak")).unwrap();
    host.load(&image("greet")).unwrap().unload().unwrap();
    assert_eq!(int(&leak, "leak_heard", &[]), 3);
    let recording = host.record();
    leak.unload().unwrap();
    let timeline = recording.finish().to_string();
    assert!(timeline.contains("was left registered and has been taken out"), "{timeline}");
    // The notifier's code is freed, and no code calls the notifier. The module can be loaded again, at the same
    // address, and register the same block.
    host.load(&image("greet")).unwrap().unload().unwrap();
    let again = host.load(&image("notifier_leak")).unwrap();
    host.load(&image("greet")).unwrap().unload().unwrap();
    assert_eq!(int(&again, "leak_heard", &[]), 3);
}

/// The module's init data is a kilobyte, which is free once the module is LIVE.
const FORMER: &str = "
#include <modload/module.h>
static int numbers[256] __initdata = { 1 };
static int __init former_init(void) { return numbers[255]; }
module_init(former_init);
";

/// The module's notifier counts, and stays registered.
const LATTER: &str = "
#include <modload/module.h>
int latter_calls(void);
static int calls;
static int hear(struct notifier_block *block, unsigned long action, void *data) { calls++; return NOTIFY_OK; }
static struct notifier_block block = { .notifier_call = hear };
int latter_calls(void) { return calls; }
static int __init latter_init(void) { return register_module_notifier(&block); }
module_init(latter_init);
";

fn a_notifier_belongs_to_the_module_its_block_lies_in() {
    let host = host();
    let former = host.load(&image_from_text("former", FORMER)).unwrap();
    let latter = host.load(&image_from_text("latter", LATTER)).unwrap();
    let block = latter.symbol_info("block").unwrap().addr;
    assert!(latter.contains(block) && !former.contains(block));
    former.unload().unwrap();
    let before = int(&latter, "latter_calls", &[]);
    let greet = host.load(&image("greet")).unwrap();
    assert_eq!(int(&latter, "latter_calls", &[]), before + 2, "COMING and LIVE of greet");
    let recording = host.record();
    latter.unload().unwrap();
    let said = recording.finish().to_string();
    assert!(said.contains("notifier latter:.data.rel.local+0x0 was left registered and has been taken out"), "{said}");
    greet.unload().unwrap();
}

fn gpl_only_exports_are_for_compatible_licences() {
    let host = host();
    drop(host.load(&image("gpl_only")).unwrap());
    let refused = host.load(&image("gpl_user")).unwrap_err();
    assert_eq!(refused.stage, Stage::Resolve);
    assert!(
        matches!(&*refused.error, Error::GplOnly { symbol, owner, .. } if symbol == "gpl_answer" && owner == "gpl_only")
    );
    let friend = host.load(&image("gpl_friend")).unwrap();
    assert_eq!(int(&friend, "gpl_friend_answer", &[]), 83);
}

fn a_namespace_must_be_imported() {
    let host = host();
    drop(host.load(&image("export_data")).unwrap());
    let stranger = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nextern const char *exported_text;\n\
                    int letter(void); int letter(void) { return exported_text[0]; }\n";
    let refused = host.load(&image_from_text("stranger", stranger)).unwrap_err();
    assert!(matches!(&*refused.error, Error::Namespace { namespace, .. } if namespace == "EXPORTS"), "{refused}");
    let import = host.load(&image("import_data")).unwrap();
    assert_eq!(int(&import, "import_letter", &[0]), i32::from(b'e'));
}

fn all_missing_symbols_are_reported_with_place_and_nearest_name() {
    let host = host();
    drop(host.load(&image("greet")).unwrap());
    let refused = host.load(&image("missing")).unwrap_err();
    let Error::Prepare(PrepareError::Unresolved(all)) = &*refused.error else { panic!("{refused}") };
    let mut found: Vec<_> = all
        .iter()
        .map(|one| (one.symbol.as_str(), one.uses, one.nearest.as_deref(), one.used_at.contains(" in missing_")))
        .collect();
    found.sort_unstable();
    let expected = [
        ("greet_helo", 1, Some("greet_hello"), true),
        ("no_such_function", 2, None, true),
        ("no_such_table", 1, None, true),
    ];
    assert_eq!(found, expected);
    assert!(host.module("greet").unwrap().users().is_empty());
}

fn two_modules_cannot_export_one_symbol() {
    let host = host();
    drop(host.load(&image("greet")).unwrap());
    let text = "#include <modload/module.h>\nMODULE_LICENSE(\"GPL\");\nint greet_hello(void);\n\
                int greet_hello(void) { return -1; }\nEXPORT_SYMBOL(greet_hello);\n";
    let second = image_from_text("second", text);
    let refused = host.load(&second).unwrap_err();
    assert!(
        matches!(&*refused.error, Error::DuplicateExport { symbol, owner } if symbol == "greet_hello" && owner == "greet"),
        "{refused}"
    );
    let guest = host.load(&image("guest")).unwrap();
    assert_eq!(int(&guest, "guest_again", &[]), 3);
    guest.unload().unwrap();
    host.unload("greet").unwrap();
    let second = host.load(&second).unwrap();
    assert_eq!(int(&second, "greet_hello", &[]), -1);
}

fn a_write_to_ro_after_init_is_a_segmentation_fault() {
    let host = host();
    let module = host.load(&image("ro_after_init").param("limit=40")).unwrap();
    let ended = in_fork(|| {
        // SAFETY: `void ro_write(int)`, which is a fault.
        unsafe { module.call("ro_write", &[1]) }.unwrap();
    });
    assert_eq!((ended.signal, ended.status), (Some(libc::SIGSEGV), None), "{}", ended.stderr);
    assert_eq!(int(&module, "ro_limit", &[]), 42);
}

extern "C" fn forty_three() -> i32 {
    43
}

fn host_exports_come_before_modules_and_gpl_ones_are_guarded() {
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let address = forty_three as extern "C" fn() -> i32 as *const ();
    let ours = Host::builder().export("anyones_answer", address).export_gpl("gpl_answer", address).build().unwrap();
    let friend = ours.load(&image("gpl_friend")).unwrap();
    assert_eq!(int(&friend, "gpl_friend_answer", &[]), 86);
    assert!(friend.uses().is_empty());
    let refused = ours.load(&image("gpl_user")).unwrap_err();
    assert!(matches!(*refused.error, Error::GplOnly { .. }), "{refused}");
    // A module may not export a symbol that the host exports.
    let refused = ours.load(&image("gpl_only")).unwrap_err();
    assert!(matches!(*refused.error, Error::DuplicateExport { .. }), "{refused}");
}

fn two_hosts_do_not_see_each_other() {
    let (one, other) = (host(), host());
    let greet = one.load(&image("greet")).unwrap();
    assert!(sentence(&other.load(&image("guest")).unwrap_err()).contains("greet_hello"));
    let log = Log::default();
    let _watcher = other.subscribe("watcher", Order::mirrored(0), Watcher::new("watcher", &log));
    let same = other.load(&image("greet")).unwrap();
    assert_eq!((int(&greet, "greet_hello", &[]), int(&greet, "greet_count", &[])), (1, 2));
    assert_eq!(int(&same, "greet_count", &[]), 1);
    let place = |module: &Module| -> Addr { module.symbol_info("count").unwrap().addr };
    assert_ne!(place(&greet), place(&same));
    drop((one, greet));
    assert_eq!(log.take(), ["COMING watcher greet", "LIVE watcher greet"]);
    assert_eq!(names(&other), ["greet"]);
}

fn parameters_show_their_values() {
    let host = host();
    let greet = host.load(&image("greet").param("times=3").param("who=there")).unwrap();
    assert_eq!((greet.param("times").as_deref(), greet.param("nope")), (Some("3"), None));
    assert_eq!(greet.params().len(), 2);
    assert_eq!(greet.license(), Some("Dual MIT/GPL"));
    let text = "
#include <modload/module.h>
static int fixed __ro_after_init = 1;
module_param(fixed, int, 0444);
static int early __initdata = 1;
module_param(early, int, 0);
";
    let constant = host.load(&image_from_text("constant", text).param("fixed=7").param("early=7")).unwrap();
    assert_eq!((constant.param("fixed").as_deref(), constant.param("early")), (Some("7"), None));
    // The cache has named the object after its fixture; a module with a name of its own keeps that name.
    // SAFETY: our own fixture.
    let renamed = unsafe { modload::read_trusted(object("recorder")) }.unwrap().named("otherwise");
    assert_eq!(host.load(&renamed).unwrap().name(), "recorder");
}
