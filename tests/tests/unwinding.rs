//! Exceptions, panics and backtraces through modules, by the process's own unwinder and by ours.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use modload::error::{Ended, Thrown, sentence};
use modload::timeline::{Event, EventKind};
use modload::{Error, Host, HostBuilder, Image, LoadError, Module, Stage};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, image, image_from_text, peek};
use modload_threads::frames::{Known, ProcessMemory, Register, Registers, Row, WalkError, walk};

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(an_exception_is_caught_in_its_module).needing("g++"),
        case!(an_exception_passes_from_module_to_module).needing("g++"),
        case!(init_that_throws_is_an_error_by_name).needing("g++"),
        case!(init_text_catches_what_it_throws).needing("g++"),
        case!(a_constructor_that_throws_is_an_error_by_name).needing("g++"),
        case!(exit_that_throws_is_a_warning).needing("g++"),
        case!(a_panic_in_a_callback_of_init_is_an_error_by_name),
        case!(a_panic_passes_through_modules_and_is_caught).needing("g++"),
        case!(a_module_of_rust_that_would_abort_is_refused),
        case!(a_panic_passes_through_a_module_of_rust_that_unwinds),
        case!(a_backtrace_names_the_modules_functions),
        case!(backtraces_of_the_c_library_pass_through_modules),
        case!(a_program_with_holes_between_its_segments_is_walked),
        case!(what_has_gone_is_not_unwound).needing("g++"),
        case!(rows_that_are_stated_are_known_to_all),
        case!(call_frame_information_that_is_wrong_is_refused_by_name),
        case!(throws_beside_loads_and_unloads).needing("g++"),
        case!(after_a_thousand_loads_and_unloads).needing("g++").within_seconds(120),
        case!(many_modules_cost_a_throw_little).needing("g++").within_seconds(300),
    ])
}

/// A module from a C++ text.
fn cxx(name: &str, text: &str) -> Image<'static> {
    let object = object_from_text(name, Language::Cxx, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn a_program_with_holes_between_its_segments_is_walked() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_holes")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Returns a host with the process's symbols, including those of the C++ runtime. Modules export only the symbols that
/// they declare: C++ compiles some functions into each object that needs them, so there would be several definitions.
fn builder() -> HostBuilder {
    // SAFETY: the C++ runtime, whose constructors do no harm.
    let runtime = unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!runtime.is_null(), "the C++ runtime is there if its compiler is");
    Host::builder().process_symbols()
}

/// Calls a function `long (*)(long)`, or one that takes a pointer and gives nothing.
fn call(module: &Module, name: &str, argument: u64) -> u64 {
    // SAFETY: the texts give their functions such types.
    unsafe { module.call(name, &[argument]) }.unwrap()
}

/// [`call`] by the function's address: no boundary catches an exception.
fn call_itself(module: &Module, name: &str, argument: i64) -> i64 {
    // SAFETY: the texts give their functions this type.
    let function = unsafe { module.symbol::<extern "C-unwind" fn(i64) -> i64>(name) }.unwrap();
    function(argument)
}

/// Throws and catches: an int, an object of its own type with a destructor on the way, and one of the library's.
const THROWER: &str = r#"
#include <stdexcept>
#include <string>
static long cleaned;
struct Guard { ~Guard() { cleaned++; } };
struct Own : std::runtime_error { long value; Own(long v) : std::runtime_error("own"), value(v) {} };
__attribute__((noinline)) static void thrower(long how) {
    Guard guard;
    if (how == 1) throw 7;
    if (how == 2) throw Own(40);
    if (how == 3) (void)std::string("x").at(5);
}
extern "C" long catches(long how) {
    try { thrower(how); }
    catch (int i) { return i; }
    catch (const Own &own) { return own.value + (long)std::string(own.what()).size(); }
    catch (const std::out_of_range &) { return 99; }
    return cleaned;
}
"#;

#[track_caller]
fn throws_and_catches(module: &Module) {
    let before = call(module, "catches", 0);
    assert_eq!([1, 2, 3].map(|how| call(module, "catches", how)), [7, 43, 99]);
    assert_eq!(call(module, "catches", 0), before + 4, "destructors have run");
}

fn an_exception_is_caught_in_its_module() {
    let host = builder().build().unwrap();
    let module = host.load(&cxx("thrower", THROWER)).unwrap();
    throws_and_catches(&module);
    module.unload().unwrap();
}

const TYPES: &str = "#include <modload/module.h>\nstruct Shared { long value; virtual ~Shared() {} };\n";

fn an_exception_passes_from_module_to_module() {
    let host = builder().build().unwrap();
    let throws = format!(
        "{TYPES}extern \"C\" void throws(long v) {{ Shared s; s.value = v; throw s; }}\nEXPORT_SYMBOL(throws);"
    );
    let passes = "#include <modload/module.h>\nextern \"C\" void throws(long); static long passed; struct Guard { ~Guard() { passed++; } };\n\
        extern \"C\" void passes(long v) { Guard g; throws(v); }\nextern \"C\" long passed_by(long) { return passed; }\nEXPORT_SYMBOL(passes);";
    let catches = format!(
        "{TYPES}extern \"C\" void passes(long);\n\
         extern \"C\" long catches(long v) {{ try {{ passes(v); }} catch (const Shared &s) {{ return s.value + 1; }}\n\
         return 0; }}"
    );
    let [throws, passes, catches] = [("throws", &*throws), ("passes", passes), ("catches", &*catches)]
        .map(|(name, text)| host.load(&cxx(&format!("{name}_shared"), text)).unwrap());
    assert_eq!(call(&catches, "catches", 41), 42);
    assert_eq!(call(&passes, "passed_by", 0), 1, "the one between has cleaned up");
    for module in [catches, passes, throws] {
        module.unload().unwrap();
    }
}

/// Requires that the load fails, names the exception, and leaves nothing behind.
#[track_caller]
fn fails_without_a_trace(host: &Host, image: &Image<'_>, stage: Stage) -> LoadError {
    let memory = |host: &Host| host.memory().map(|usage| (usage.used, usage.free));
    let before = memory(host);
    let failed = host.load(image).unwrap_err();
    assert_eq!(failed.stage, stage, "{failed}");
    assert_eq!(host.modules(), []);
    // The stripes' free ranges may have grown, because memory was touched for the first time; the used memory is
    // unchanged.
    assert_eq!(memory(host).map(|(used, _)| used), before.map(|(used, _)| used));
    failed
}

const INIT: &str = "extern \"C\" int init_module(void)";

fn init_that_throws_is_an_error_by_name() {
    let host = builder().build().unwrap();
    let image = cxx("init_throws", &format!("{INIT} {{ throw 1; }}"));
    for _ in 0..3 {
        let failed = fails_without_a_trace(&host, &image, Stage::Init);
        let said = "init_throws: init: init was left by an exception of type int, thrown at init_module+";
        assert!(sentence(&failed).starts_with(said), "{failed}");
        let Error::Thrown { function: "init", thrown } = *failed.error else { panic!("{failed:?}") };
        let Thrown::Exception(exception) = thrown.thrown else { panic!("{thrown:?}") };
        assert_eq!(exception.class, "GNUCC++");
        assert!(thrown.place.is_some_and(|place| place.ends_with(" [init_throws]")));
    }
}

fn init_text_catches_what_it_throws() {
    let text = format!(
        "#define INIT __attribute__((section(\".init.text\"), noinline))\n\
         INIT static void thrower(void) {{ throw 5; }}\n\
         {INIT} INIT; {INIT} {{ try {{ thrower(); }} catch (int i) {{ return i - 5; }} return -1; }}\n\
         extern \"C\" long catches(long v) {{ try {{ throw v; }} catch (long w) {{ return w; }} }}"
    );
    let host = builder().build().unwrap();
    let module = host.load(&cxx("init_text", &text)).unwrap();
    assert_eq!(call(&module, "catches", 3), 3, "init's descriptions are gone, the others are not");
    // Other modules are loaded at the former addresses of its init text.
    let others: Vec<_> =
        (0..20).map(|number| host.load(&cxx("thrower", THROWER).named(format!("thrower{number}"))).unwrap()).collect();
    others.iter().for_each(throws_and_catches);
    assert_eq!(call(&module, "catches", 4), 4);
}

fn a_constructor_that_throws_is_an_error_by_name() {
    let host = builder().build().unwrap();
    let text = "struct Thrower { Thrower() { throw 1L; } }; Thrower thrower;";
    let failed = fails_without_a_trace(&host, &cxx("constructor", text), Stage::Constructors);
    let said = "constructor: constructors: a constructor was left by an exception of type long, thrown at ";
    assert!(sentence(&failed).starts_with(said), "{failed}");
}

fn exit_that_throws_is_a_warning() {
    let host = builder().build().unwrap();
    let module = host.load(&cxx("exit_throws", "extern \"C\" void cleanup_module(void) { throw 1; }")).unwrap();
    let recording = host.record();
    module.unload().unwrap();
    let is_warning = |event: &&Event| matches!(event.kind, EventKind::Warning { .. });
    let timeline = recording.finish();
    let warnings: Vec<String> = timeline.events.iter().filter(is_warning).map(|event| format!("{event}")).collect();
    assert_eq!(warnings.len(), 1, "{timeline:?}");
    assert!(
        warnings[0].contains("exit was left by an exception of type int, thrown at cleanup_module+"),
        "{warnings:?}"
    );
    assert_eq!(host.modules(), []);
}

extern "C-unwind" fn panics() -> c_int {
    std::panic::resume_unwind(Box::new("not today"));
}

/// The address of a function of the host's.
fn address(function: extern "C-unwind" fn() -> c_int) -> *const c_void {
    #[expect(clippy::as_conversions, reason = "the address of a function, to be exported")]
    let address = function as *const c_void;
    address
}

fn a_panic_in_a_callback_of_init_is_an_error_by_name() {
    let host = Host::builder().export("panics", address(panics)).build().unwrap();
    let image = image_from_text("init_panics", "int panics(void); int init_module(void) { return panics() + 1; }");
    let failed = fails_without_a_trace(&host, &image, Stage::Init);
    let said = "init_panics: init: init was left by a panic: not today, thrown at init_module+";
    assert!(sentence(&failed).starts_with(said), "{failed}");
}

fn a_panic_passes_through_modules_and_is_caught() {
    let text = "extern \"C\" int panics(void); static long cleaned; struct Guard { ~Guard() { cleaned++; } };\n\
        extern \"C\" long passes(long) { Guard g; return panics() + 1; }\n\
        extern \"C\" long cleaned_up(long) { return cleaned; }";
    let host = builder().export_globals().export("panics", address(panics)).build().unwrap();
    let module = host.load(&cxx("passes", text)).unwrap();
    let outer = host.load(&image_from_text("outer", "long passes(long); long outer(long a) { return passes(a) + 1; }"));
    let outer = outer.unwrap();
    for times in 1..4 {
        let caught = catch_unwind(AssertUnwindSafe(|| call_itself(&outer, "outer", 1))).unwrap_err();
        assert_eq!(caught.downcast_ref::<&str>(), Some(&"not today"));
        assert_eq!(call(&module, "cleaned_up", 0), times, "destructors have run");
    }
    drop(outer);
    host.unload("outer").unwrap();
    module.unload().unwrap();
}

const RUST: &str = "#![no_std]\n\
    unsafe extern \"C-unwind\" { safe fn panics() -> i32; }\n\
    #[unsafe(no_mangle)]\npub extern \"C-unwind\" fn passes(a: i64) -> i64 { i64::from(panics()) + a }\n";

fn rust(text: &str, flags: &[&str]) -> Image<'static> {
    let object = object_from_text("rust_passes", Language::Rust, text, Compiler::Rustc, flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("rust_passes")
}

/// If the code is compiled to abort, it has a landing pad that aborts, and needs Rust's own runtime for that: refused
/// by name.
fn a_module_of_rust_that_would_abort_is_refused() {
    let host = Host::builder().process_symbols().export("panics", address(panics)).build().unwrap();
    let failed = sentence(&fails_without_a_trace(&host, &rust(RUST, &[]), Stage::Resolve));
    assert!(failed.contains("panic_cannot_unwind") && failed.contains("\"rust_eh_personality\""), "{failed}");
}

fn a_panic_passes_through_a_module_of_rust_that_unwinds() {
    let host = Host::builder().process_symbols().export("panics", address(panics)).build().unwrap();
    let module = host.load(&rust(RUST, &["-Cpanic=unwind"])).unwrap();
    for _ in 0..3 {
        let caught = catch_unwind(AssertUnwindSafe(|| call_itself(&module, "passes", 1))).unwrap_err();
        assert_eq!(caught.downcast_ref::<&str>(), Some(&"not today"));
    }
}

/// The results of callbacks, for the tests that have modules call them.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
static HOST: Mutex<Option<Host>> = Mutex::new(None);

extern "C-unwind" fn looks() -> c_int {
    let host = HOST.lock().unwrap();
    let backtrace = host.as_ref().unwrap().backtrace();
    assert_eq!(backtrace.ended(), Ok(Ended::Outermost), "{backtrace}");
    let places = backtrace.frames().iter().filter_map(|frame| frame.place.clone());
    *SEEN.lock().unwrap() = places.collect();
    0
}

const CALLER: &str = "int looks(void);\n\
    __attribute__((noinline)) static int inner(void) { return looks() + 1; }\n\
    __attribute__((noinline)) long caller(long a) { return inner() + a; }\n\
    __attribute__((noinline, noreturn)) void ends(void) { looks(); __builtin_unreachable(); }\n\
    long ending(long a) { return a; }";

/// Places without distances and sizes, which compilers choose.
fn functions(places: &[String]) -> Vec<String> {
    let function = |place: &String| {
        let (name, rest) = place.split_once("+0x").expect("a distance");
        let module = rest.split_once(' ').expect("a module").1;
        assert!(rest.split(' ').next().unwrap().contains("/0x"), "a size: {place}");
        format!("{name} {module}")
    };
    places.iter().map(function).collect()
}

fn a_backtrace_names_the_modules_functions() {
    let host = Host::builder().export_globals().export("looks", address(looks)).build().unwrap();
    let module = host.load(&image_from_text("caller", CALLER)).unwrap();
    let at = module.symbol_info("caller").unwrap();
    assert_eq!(host.describe(at.addr), Some(format!("caller+0x0/{:#x} [caller]", at.size)));
    let last = at.size - 1;
    assert_eq!(host.describe(at.addr + last), Some(format!("caller+{last:#x}/{:#x} [caller]", at.size)));
    let here: u64 = u64::try_from(address(looks).expose_provenance()).unwrap();
    assert_eq!(host.describe(modload::text::Addr::new(here)), None, "the host's own function");
    *HOST.lock().unwrap() = Some(host);
    assert_eq!(call(&module, "caller", 4), 5);
    assert_eq!(functions(&SEEN.lock().unwrap()), ["inner [caller]", "caller [caller]"]);
    drop(module);
}

extern "C-unwind" fn looks_by_the_c_library() -> c_int {
    let mut addresses = [std::ptr::null_mut(); 64];
    // SAFETY: room for 64 addresses.
    let count = unsafe { libc::backtrace(addresses.as_mut_ptr(), 64) };
    let count = usize::try_from(count).unwrap();
    let host = HOST.lock().unwrap();
    let host = host.as_ref().unwrap();
    let ours = host.backtrace();
    // Each backtrace begins somewhere in this function; behind that they are the same.
    let theirs: Vec<u64> =
        addresses[1..count].iter().map(|address| u64::try_from(address.expose_provenance()).unwrap()).collect();
    let ours_behind: Vec<u64> = ours.frames()[1..].iter().map(|frame| frame.at.get()).collect();
    assert_eq!(theirs, ours_behind);
    let named = theirs.iter().filter_map(|at| host.describe(modload::text::Addr::new(*at - 1)));
    *SEEN.lock().unwrap() = named.collect();
    let by_rust = std::backtrace::Backtrace::force_capture().to_string();
    assert!(by_rust.contains("main"), "Rust's own goes through to main:\n{by_rust}");
    0
}

fn backtraces_of_the_c_library_pass_through_modules() {
    let host = Host::builder().export("looks", address(looks_by_the_c_library)).build().unwrap();
    let module = host.load(&image_from_text("caller", CALLER)).unwrap();
    *HOST.lock().unwrap() = Some(host);
    assert_eq!(call(&module, "caller", 4), 5);
    assert_eq!(functions(&SEEN.lock().unwrap()), ["inner [caller]", "caller [caller]"]);
    drop(module);
}

#[link(name = "gcc_s")]
unsafe extern "C" {
    fn _Unwind_Find_FDE(pc: *const c_void, bases: *mut [*const c_void; 3]) -> *const c_void;
}

/// Returns whether the process's unwinder and ours know an address.
fn is_known(at: u64) -> (bool, bool) {
    let mut bases = [std::ptr::null(); 3];
    // SAFETY: any address may be looked up, and the array has room for three of them.
    let theirs =
        unsafe { _Unwind_Find_FDE(std::ptr::without_provenance(usize::try_from(at).unwrap()), &raw mut bases) };
    let registers = Registers::unknown().with(Register::RIP, at).with(Register::RSP, 8);
    let ours = walk(&registers, ProcessMemory::own(), |_| std::ops::ControlFlow::Break(()));
    (!theirs.is_null(), ours != Err(WalkError::NoRow { pc: at }))
}

fn what_has_gone_is_not_unwound() {
    let host = builder().build().unwrap();
    let text = format!("{INIT} __attribute__((section(\".init.text\")));\n{INIT} {{ return 0; }}\n{THROWER}");
    let seen = std::sync::Arc::new(AtomicU64::new(0));
    let noted = seen.clone();
    let _watch = host.subscribe("watch", modload::Order::mirrored(0), Noting(noted));
    let module = host.load(&cxx("thrower", &text)).unwrap();
    let core = module.symbol_info("catches").unwrap().addr.get();
    let init = seen.load(Ordering::Relaxed);
    assert!(init != 0 && init != core);
    assert_eq!(is_known(core), (true, true));
    assert_eq!(is_known(init), (false, false), "gone with init");
    module.unload().unwrap();
    assert_eq!(is_known(core), (false, false));
    assert_eq!(peek(modload::text::Addr::new(core), 1), [0xcc]);
}

fn rows_that_are_stated_are_known_to_all() {
    let host = Host::builder().build().unwrap();
    // An address without code.
    let code = 0x1234_5678_0000..0x1234_5678_0010;
    let known = Known::stated(code.clone(), &[Row::at_entry()]).unwrap();
    assert_eq!([code.start, code.end - 1, code.end].map(is_known), [(true, true), (true, true), (false, false)]);
    drop(known);
    assert_eq!(is_known(code.start), (false, false));
    drop(host);
}

/// Stores the address of a module's init function, and checks that its frames are not known before its text is
/// published.
struct Noting(std::sync::Arc<AtomicU64>);

impl modload::Subscriber for Noting {
    fn coming(&self, module: &mut modload::Coming<'_>) -> Result<(), modload::Refusal> {
        let at = module.module().symbol_info("init_module").unwrap().addr.get();
        assert_eq!(is_known(at), (false, false), "not published");
        self.0.store(at, Ordering::Relaxed);
        Ok(())
    }
}

fn call_frame_information_that_is_wrong_is_refused_by_name() {
    let host = Host::builder().build().unwrap();
    for (text, said) in [
        (
            // A description of a function that is another module's: an absolute address.
            ".section .eh_frame,\"a\",@progbits\n.long 16,0\n.byte 1,0,1,0x78,16,0x0c,7,8,0x90,1,0,0\n\
             .long 20,24\n.quad 0x1000,16\n",
            "section \".eh_frame\": the entry at offset 0x14 describes 0x1000 to 0x1010, which is not text of this module",
        ),
        (
            ".section .eh_frame,\"a\",@progbits\n.long 16,0\n.byte 7,0,1,0x78,16,0x0c,7,8,0x90,1,0,0\n",
            "section \".eh_frame\": the entry at offset 0x0: its version is 7, not 1 or 3",
        ),
        (
            ".section .eh_frame,\"a\",@progbits\n.long 160,0\n.byte 1,0\n",
            "section \".eh_frame\": the entry at offset 0x0: it is cut off",
        ),
    ] {
        let text = format!(".text\n.globl f\nf: ret\n{text}");
        let object = object_from_text("bad_frames", Language::Assembler, &text, Compiler::Cc, &[]).unwrap();
        // SAFETY: no code of the module is run, and the code has no effect.
        let image = unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("bad_frames");
        let failed = fails_without_a_trace(&host, &image, Stage::Form);
        assert_eq!(sentence(&failed), format!("bad_frames: form: {said}"));
    }
}

fn throws_beside_loads_and_unloads() {
    let host = builder().build().unwrap();
    let module = host.load(&cxx("thrower", THROWER)).unwrap();
    let done = AtomicBool::new(false);
    let thrown = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!([1, 2, 3].map(|how| call(&module, "catches", how)), [7, 43, 99]);
                    thrown.fetch_add(3, Ordering::Relaxed);
                }
            });
        }
        let image = image("greet");
        let until = Instant::now() + Duration::from_secs(3);
        let mut rounds = 0;
        while Instant::now() < until || rounds < 200 {
            host.load(&image).unwrap().unload().unwrap();
            rounds += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(thrown.load(Ordering::Relaxed) > 1000, "{thrown:?}");
}

fn after_a_thousand_loads_and_unloads() {
    let host = builder().export("panics", address(panics)).build().unwrap();
    let thrower = cxx("thrower", THROWER);
    let caller = image_from_text("caller", "int panics(void); long caller(long a) { return panics() + a; }");
    for _ in 0..1000 {
        let module = host.load(&thrower).unwrap();
        module.unload().unwrap();
    }
    let module = host.load(&thrower).unwrap();
    throws_and_catches(&module);
    let caller = host.load(&caller).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| call_itself(&caller, "caller", 1))).unwrap_err();
    assert_eq!(caught.downcast_ref::<&str>(), Some(&"not today"));
}

/// Not a benchmark: the test fails if the cost of one module's throw grows with the number of modules. Figures go to
/// standard error.
fn many_modules_cost_a_throw_little() {
    let host = builder().build().unwrap();
    let image = cxx("thrower", THROWER);
    let mut modules = Vec::new();
    let mut later = Vec::new();
    for count in [1_usize, 1000, 10_000] {
        let begun = Instant::now();
        let add = count - modules.len();
        for number in modules.len()..count {
            modules.push(host.load(&image.clone().named(format!("thrower{number}"))).unwrap());
        }
        let load = begun.elapsed() / u32::try_from(add).unwrap();
        let timed = |times: u32| {
            let begun = modload_tests::cpu_time();
            for round in 0..times {
                let which = usize::try_from(round).unwrap() * 7919 % modules.len();
                assert_eq!(call(&modules[which], "catches", 1), 7);
            }
            (modload_tests::cpu_time() - begun) / times
        };
        let first = timed(1);
        timed(2000);
        let one = timed(2000);
        let more = host.load(&image.clone().named("one_more")).unwrap();
        let begun = Instant::now();
        throws_and_catches(&more);
        let after_a_change = begun.elapsed() / 3;
        more.unload().unwrap();
        eprintln!(
            "{count} modules: load {load:?}, first throw {first:?}, later throws {one:?}, \
             three throws after a change {after_a_change:?} each"
        );
        later.push(one);
    }
    assert!(later[2] < 10 * later[0] + Duration::from_micros(20), "{later:?}");
    let begun = Instant::now();
    let count = u32::try_from(modules.len()).unwrap();
    while let Some(module) = modules.pop() {
        module.unload().unwrap();
    }
    eprintln!("unload {:?}", begun.elapsed() / count);
}
