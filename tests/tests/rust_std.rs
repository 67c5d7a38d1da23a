//! Rust plugins with their own standard library: `crate-type = ["staticlib"]`, as cargo makes them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use modload::{Host, Image, Module};
use modload_tests::{case, mappings, run};

fn main() -> ExitCode {
    run(&[
        case!(the_standard_library_works),
        case!(two_standard_libraries_live_side_by_side),
        case!(a_panic_that_leaves_the_plugin_is_an_error_of_the_call),
        case!(a_plugin_comes_and_goes).within_seconds(3600),
        case!(an_rlib_alone_has_no_allocator),
        case!(the_example_is_built_and_loaded),
    ])
}

/// A plugin that uses most of std. Each destructor of a thread-local variable is counted by the host.
const PLUGIN: &str = r##"
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::fmt::Write;
    use std::sync::{Arc, Mutex, mpsc};

    unsafe extern "C" { fn count_(what: u32); }

    struct Guard;
    impl Guard {
        fn new() -> Guard { unsafe { count_(1) }; Guard }
    }
    impl Drop for Guard {
        fn drop(&mut self) { unsafe { count_(2) } }
    }
    thread_local! {
        static GUARD: Guard = Guard::new();
        static WORDS: RefCell<HashMap<String, u64>> = RefCell::new(HashMap::new());
        static CALLS: std::cell::Cell<u64> = const { std::cell::Cell::new(40) };
    }

    /// Variables of this thread, with and without destructors.
    #[unsafe(no_mangle)]
    pub extern "C" fn local(number: u64) -> u64 {
        GUARD.with(|_| ());
        CALLS.set(CALLS.get() + 1);
        WORDS.with_borrow_mut(|words| {
            *words.entry(format!("word {}", number % 3)).or_default() += number;
            words.values().sum::<u64>() + CALLS.get()
        })
    }

    /// A panic that stays inside.
    #[unsafe(no_mangle)]
    pub extern "C" fn caught(number: u64) -> u64 {
        std::panic::set_hook(Box::new(|_| ()));
        let all = [1_u64, 2, 3];
        let result = std::panic::catch_unwind(|| all[usize::try_from(number).unwrap()]);
        let _ = std::panic::take_hook();
        result.unwrap_or(99)
    }

    /// Threads, channels and locks.
    #[unsafe(no_mangle)]
    pub extern "C" fn threads(count: u64) -> u64 {
        let (send, receive) = mpsc::channel();
        let total = Arc::new(Mutex::new(0));
        let all: Vec<_> = (0..count).map(|number| {
            let (send, total) = (send.clone(), total.clone());
            std::thread::Builder::new().name(format!("plugin {number}")).spawn(move || {
                let name = std::thread::current().name().map_or(0, str::len);
                send.send(number + local(number)).unwrap();
                *total.lock().unwrap() += u64::try_from(name).unwrap();
            }).unwrap()
        }).collect();
        drop(send);
        let sum: u64 = receive.iter().sum();
        all.into_iter().for_each(|thread| thread.join().unwrap());
        sum + *total.lock().unwrap()
    }

    /// Files, text and time.
    #[unsafe(no_mangle)]
    pub extern "C" fn files(_: u64) -> u64 {
        let mut text = String::new();
        write!(text, "{:?} {:.2}", std::path::Path::new("/a/b").parent(), 1.0 / 3.0).unwrap();
        let begun = std::time::Instant::now();
        let mounts = std::fs::read_to_string("/proc/self/mounts").map_or(0, |text| u64::from(!text.is_empty()));
        println!("{text}");
        eprintln!("{text}");
        mounts + u64::from(begun.elapsed().as_secs() < 5) + u64::try_from(text.len()).unwrap()
    }

    #[unsafe(no_mangle)]
    pub extern "C-unwind" fn panics(number: u64) -> u64 {
        std::panic::set_hook(Box::new(|_| ()));
        panic!("the plugin's panic {number}")
    }
"##;

/// Compiles a library without dependencies, as cargo does for a release build.
fn built(name: &str, kind: &str, text: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, library) = (folder.join("lib.rs"), folder.join(format!("lib{name}.a")));
    std::fs::write(&source, text).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["--edition=2024", "-Copt-level=2", "--crate-name", name, "--crate-type", kind]);
    let output = command.arg("-o").arg(&library).arg(&source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// The functions of the plugin.
const FUNCTIONS: [&str; 5] = ["local", "caught", "threads", "files", "panics"];

fn image(name: &str, library: &Path) -> Image<'static> {
    // SAFETY: the text is ours.
    let image = unsafe { Image::trusted(std::fs::read(library).unwrap()) };
    FUNCTIONS.into_iter().fold(image.named(name), |image, name| image.want(name))
}

static MADE: AtomicU64 = AtomicU64::new(0);
static DROPPED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(what: u32) {
    let counter = if what == 1 { &MADE } else { &DROPPED };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn host() -> Host {
    #[expect(clippy::as_conversions, reason = "the only way from a function to its address")]
    let count = count as *const ();
    Host::builder().process_symbols().export("count_", count).build().unwrap()
}

fn call(module: &Module, name: &str, argument: u64) -> u64 {
    // SAFETY: the text has functions of this type.
    unsafe { module.call(name, &[argument]) }.unwrap()
}

fn check(module: &Module) {
    assert_eq!([call(module, "local", 5), call(module, "local", 6)], [46, 53]);
    assert_eq!([call(module, "caught", 2), call(module, "caught", 7)], [3, 99]);
    // For each of eight threads: its number, the number again as its only word, 41 calls, and eight letters of the name.
    assert_eq!(call(module, "threads", 8), 28 + 28 + 8 * 41 + 64);
    assert_eq!(call(module, "files", 0), 2 + 15);
}

fn the_standard_library_works() {
    let library = built("std_plugin", "staticlib", PLUGIN);
    let host = host();
    let module = host.load(&image("std_plugin", &library)).unwrap();
    check(&module);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!([call(&module, "local", 5), call(&module, "local", 6)], [46, 53]));
        }
    });
    module.unload().unwrap();
    assert_eq!(MADE.load(Ordering::Relaxed), DROPPED.load(Ordering::Relaxed));
    assert_eq!(modload_tls::usage().blocks, 0);
}

fn two_standard_libraries_live_side_by_side() {
    let library = built("std_plugin", "staticlib", PLUGIN);
    let host = host();
    let modules = ["one", "two"].map(|name| host.load(&image(name, &library)).unwrap());
    for module in &modules {
        check(module);
    }
    let [one, two] = modules;
    one.unload().unwrap();
    assert_eq!(call(&two, "local", 0), 11 + 43);
    two.unload().unwrap();
    assert_eq!((MADE.load(Ordering::Relaxed), DROPPED.load(Ordering::Relaxed)), (18, 18));
}

fn a_panic_that_leaves_the_plugin_is_an_error_of_the_call() {
    let library = built("std_plugin", "staticlib", PLUGIN);
    let host = host();
    let module = host.load(&image("std_plugin", &library)).unwrap();
    // SAFETY: the text has a function of this type.
    let left = unsafe { module.call("panics", &[3]) }.unwrap_err().to_string();
    assert!(left.contains("a panic of Rust code with a standard library of its own"), "{left}");
    assert_eq!(call(&module, "local", 5), 46);
    // For the plugin's library this thread is panicking until it ends; another thread is not.
    thread::scope(|scope| scope.spawn(|| check(&module)).join().unwrap());
}

/// Links the parts of an archive that the functions need to one object without dead sections, so that a load need not
/// search the archive.
fn relinked(library: &Path) -> Vec<u8> {
    let object = library.with_extension("o");
    let mut ld = Command::new("ld");
    ld.args(["-r", "--gc-sections"]).args(FUNCTIONS.iter().flat_map(|name| ["-u", name]));
    let output = ld.arg("-o").arg(&object).arg(library).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(object).unwrap()
}

/// Cycles of load, calls in eight threads, and unload. `MODLOAD_ROUNDS` sets their number.
fn a_plugin_comes_and_goes() {
    // SAFETY: numbers only. Threads would leave memory in allocators of their own, which is not the subject.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let rounds: u64 = std::env::var("MODLOAD_ROUNDS").map_or(100, |rounds| rounds.parse().unwrap());
    let object = relinked(&built("std_plugin", "staticlib", PLUGIN));
    let host = host();
    // SAFETY: the text is ours.
    let image = unsafe { Image::trusted(object) }.named("std_plugin");
    let round = |calls: &AtomicU64| {
        let module = host.load(&image).unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert_eq!([call(&module, "local", 5), call(&module, "local", 6)], [46, 53]);
                    calls.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        drop(module);
        host.unload_within("std_plugin", Duration::from_secs(10)).unwrap();
    };
    let calls = AtomicU64::new(0);
    (0..20).for_each(|_| round(&calls));
    let (resident, mapped) = (resident(), mappings().len());
    (0..rounds).for_each(|_| round(&calls));
    let threads = calls.load(Ordering::Relaxed);
    assert_eq!((MADE.load(Ordering::Relaxed), DROPPED.load(Ordering::Relaxed)), (threads, threads));
    let grown = self::resident().saturating_sub(resident);
    assert!(grown < 1 << 20, "{grown} bytes more after {rounds} cycles");
    assert!(mappings().len() <= mapped + 2, "{} mappings, {mapped} before", mappings().len());
    assert_eq!(modload_tls::usage().blocks, 0);
    println!("{rounds} cycles, {threads} threads, {grown} bytes more");
}

/// Returns the resident memory in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * status.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

/// README shows this plugin and these commands.
fn the_example_is_built_and_loaded() {
    let folder = modload_fixtures::workspace_root().join("examples/rust_plugin");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rust_plugin-{}", std::process::id()));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "--target-dir"]).arg(&target).current_dir(&folder);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // SAFETY: the example is ours.
    let image = unsafe { Image::trusted(std::fs::read(target.join("release/librust_plugin.a")).unwrap()) };
    let module = host().load(&image.named("rust_plugin").want("seen")).unwrap();
    assert_eq!([7, 7, 8].map(|number| call(&module, "seen", number)), [1, 2, 1]);
    let readme = std::fs::read_to_string(modload_fixtures::workspace_root().join("README.md")).unwrap();
    let source = std::fs::read_to_string(folder.join("src/lib.rs")).unwrap();
    let code = |text: &str| text.lines().filter(|line| !line.starts_with("//")).collect::<Vec<_>>().join("\n");
    assert!(readme.contains(code(&source).trim()), "README.md shows another text than src/lib.rs");
    std::fs::remove_dir_all(target).unwrap();
}

/// rustc adds the allocator's functions when it links; a library of Rust's own format has none.
fn an_rlib_alone_has_no_allocator() {
    let library = built("std_plugin", "rlib", PLUGIN);
    let refused = modload::error::sentence(&host().load(&image("std_plugin", &library)).unwrap_err());
    assert!(refused.contains("unresolved"), "{refused}");
}
