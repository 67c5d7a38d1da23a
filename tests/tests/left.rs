//! If module code ends by a forced unwind or by a throw, the result is an error of that call, load or unload, and the
//! host continues.

use std::ffi::{c_int, c_void};
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use modload::error::Thrown;
use modload::{Error, Host, Image, Module, Stage, SymbolError};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, image_from_text, run};

fn main() -> ExitCode {
    run(&[
        case!(exceptions_are_named_with_type_text_and_place).needing("g++"),
        case!(exceptions_of_many_threads_are_each_its_calls).needing("g++"),
        case!(panics_of_two_standard_libraries_are_told_apart),
        case!(thread_exit_ends_the_call_and_not_the_thread).needing("g++"),
        case!(thread_exit_in_init_fails_the_load),
        case!(thread_exit_of_a_modules_thread_ends_that),
        case!(thread_exit_leaves_the_innermost_call),
        case!(cancellation_takes_the_load_back_and_ends_the_thread),
        case!(cancellation_takes_the_call_back),
        case!(cancellation_does_not_end_a_thread_of_rusts),
        case!(a_failed_load_leaves_its_threads_their_text),
        case!(handlers_of_a_module_go_with_it),
        case!(handlers_of_fork_go_with_a_module),
        case!(destructors_of_threads_keep_the_module),
        case!(destructors_of_the_unloading_thread_run),
        case!(destructors_are_a_forked_childs_own),
    ])
}

fn host() -> Host {
    // SAFETY: the C++ runtime, whose constructors do no harm. The runtime may be missing if no case needs it.
    unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    Host::builder().process_symbols().build().unwrap()
}

fn cxx(name: &str, text: &str) -> Image<'static> {
    let object = object_from_text(name, Language::Cxx, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

/// With glibc's `libc_nonshared.a`, which the compiler's driver adds to a program.
fn with_libc(name: &str, text: &str) -> Image<'static> {
    let object = object_from_text(name, Language::C, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let archive = std::process::Command::new("cc").arg("-print-file-name=libc_nonshared.a").output().unwrap();
    let archive = String::from_utf8(archive.stdout).unwrap();
    let inputs = [object.to_str().unwrap(), archive.trim()].map(|path| modload::Input {
        name: path.rsplit('/').next().unwrap().to_owned(),
        bytes: std::fs::read(path).unwrap().into(),
    });
    // SAFETY: the texts are ours, and so is the C library.
    unsafe { Image::trusted_unit(inputs.into()) }.named(name)
}

fn calls(module: &Module, name: &str, argument: u64) -> Result<u64, SymbolError> {
    // SAFETY: the texts have functions that take an integer or a pointer, or nothing.
    unsafe { module.call(name, &[argument]) }
}

fn call(module: &Module, name: &str) -> u64 {
    calls(module, name, 0).unwrap() & 0xffff_ffff
}

/// How a call was left, and the whole message.
fn left(refused: SymbolError) -> (Thrown, String) {
    let said = refused.to_string();
    let SymbolError::Left { left, .. } = refused else { panic!("{said}") };
    (left.thrown, said)
}

const THROWS: &str = r#"
    #include <stdexcept>
    #include <string>
    namespace outer { template<class T> struct Own { T value; ~Own() {} }; }
    static int cleaned;
    struct Cleaner { ~Cleaner() { cleaned++; } };
    extern "C" int throws(long which)
    {
        Cleaner cleaner;
        switch (which) {
        case 0: throw 7;
        case 1: throw std::runtime_error("the \x1b[31mreason");
        case 2: throw outer::Own<unsigned long>{1};
        case 3: { struct Silent : std::exception { const char *what() const noexcept override { return nullptr; } }; throw Silent(); }
        case 4: { try { throw std::out_of_range("inner"); } catch (...) { throw; } }
        case 5: throw std::string("a string");
        }
        return cleaned;
    }
    extern "C" int fine(void) { return 42; }"#;

fn exceptions_are_named_with_type_text_and_place() {
    let host = host();
    let module = host.load(&cxx("throws", THROWS)).unwrap();
    let said = |which| left(calls(&module, "throws", which).unwrap_err()).1;
    for round in 0..3 {
        let of_type = ["int", "std::runtime_error: the \\u{1b}[31mreason", "outer::Own<unsigned long>"];
        for (which, of_type) in of_type.into_iter().enumerate() {
            let said = said(u64::try_from(which).unwrap());
            // gcc has put the throw into a separate part of the function.
            let begins = format!("\"throws\" of throws was left by an exception of type {of_type}, thrown at throws");
            assert!(said.starts_with(&begins), "{said}");
            assert!(said.ends_with(" [throws]"), "{said}");
        }
        assert!(said(3).contains("an exception of type throws::Silent, thrown at"), "{}", said(3));
        assert!(said(4).contains("of type std::out_of_range: inner, thrown at"), "{}", said(4));
        assert!(said(5).contains("of type std::__cxx11::basic_string<char"), "{}", said(5));
        // The last call of a round is counted in the next one.
        assert_eq!(call_of(&module, "throws", 9), 7 * round + 6, "every destructor ran");
    }
    assert_eq!(call(&module, "fine"), 42);
    module.unload().unwrap();
}

fn call_of(module: &Module, name: &str, argument: u64) -> u64 {
    calls(module, name, argument).unwrap() & 0xffff_ffff
}

fn exceptions_of_many_threads_are_each_its_calls() {
    let host = host();
    let module = host.load(&cxx("throws", THROWS)).unwrap();
    thread::scope(|scope| {
        for which in 0..6 {
            let module = &module;
            scope.spawn(move || {
                for _ in 0..500 {
                    let (thrown, said) = left(calls(module, "throws", which).unwrap_err());
                    assert!(matches!(thrown, Thrown::Exception(_)), "{said}");
                    assert_eq!(which == 0, said.contains("of type int,"), "{said}");
                }
            });
        }
    });
    module.unload().unwrap();
}

extern "C-unwind" fn host_panics() -> c_int {
    std::panic::resume_unwind(Box::new("of the host's"));
}

fn panics_of_two_standard_libraries_are_told_apart() {
    // A panic in the form of another standard library: the panic differs from this program's by the word behind the
    // header.
    let text = r#"
        #include <stdlib.h>
        #include <string.h>
        struct exception { unsigned long long class; void (*cleanup)(int, void *); unsigned long private[2]; void *canary, *payload; };
        int _Unwind_RaiseException(void *);
        static char canary;
        static void cleanup(int reason, void *exception) { (void)reason; (void)exception; abort(); }
        int other(long unused)
        {
            (void)unused;
            struct exception *exception = calloc(1, sizeof *exception);
            memcpy(&exception->class, "MOZ\0RUST", 8);
            exception->cleanup = cleanup;
            exception->canary = &canary;
            return _Unwind_RaiseException(exception) + 1;
        }
        int host_panics(void);
        int own(long unused) { (void)unused; return host_panics() + 1; }
        int fine(void) { return 42; }"#;
    #[expect(clippy::as_conversions, reason = "the address of a function, to be exported")]
    let panics = host_panics as extern "C-unwind" fn() -> c_int as *const c_void;
    let host = Host::builder().process_symbols().export("host_panics", panics).build().unwrap();
    let object =
        object_from_text("panics", Language::C, text, Compiler::Cc, &["-O2", "-fPIC", "-fexceptions"]).unwrap();
    // SAFETY: the text is ours.
    let image = unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("panics");
    let module = host.load(&image).unwrap();
    for _ in 0..3 {
        let (thrown, said) = left(calls(&module, "other", 0).unwrap_err());
        assert_eq!(thrown, Thrown::OtherPanic);
        assert!(said.contains("a panic of Rust code with a standard library of its own"), "{said}");
        assert!(said.contains("thrown at other+0x"), "{said}");
        let (thrown, said) = left(calls(&module, "own", 0).unwrap_err());
        assert_eq!(thrown, Thrown::Panic("of the host's".into()));
        assert!(said.contains("a panic: of the host's, thrown at own+0x"), "{said}");
    }
    assert_eq!(call(&module, "fine"), 42);
    module.unload().unwrap();
}

fn thread_exit_ends_the_call_and_not_the_thread() {
    let host = host();
    let text = r#"
        #include <pthread.h>
        static int cleaned, caught;
        struct Cleaner { ~Cleaner() { cleaned++; } };
        extern "C" int ends(long how)
        {
            Cleaner cleaner;
            try { pthread_exit((void *)how); } catch (...) { caught++; throw; }
        }
        extern "C" int counts(void) { return cleaned * 100 + caught; }"#;
    let module = host.load(&cxx("ends", text)).unwrap();
    for round in 1..4 {
        let (thrown, said) = left(calls(&module, "ends", 5).unwrap_err());
        assert_eq!(thrown, Thrown::ThreadExit);
        assert!(
            said.contains("pthread_exit, on a thread that the module has not created, called at ends+0x"),
            "{said}"
        );
        assert_eq!(call(&module, "counts"), round * 101);
    }
    module.unload().unwrap();
}

fn thread_exit_in_init_fails_the_load() {
    let host = host();
    let text = |function: &str| format!("#include <pthread.h>\n{function} {{ pthread_exit((void *)1); }}");
    let stages = [
        ("int init_module(void)", Stage::Init),
        ("__attribute__((constructor)) static void construct(void)", Stage::Constructors),
    ];
    for (function, stage) in stages {
        let failed = host.load(&image_from_text("exits", &text(function))).unwrap_err();
        assert_eq!(failed.stage, stage);
        let Error::Thrown { thrown, .. } = &*failed.error else { panic!("{failed}") };
        assert_eq!(thrown.thrown, Thrown::ThreadExit);
        assert_eq!(host.modules(), []);
    }
    let module = host.load(&image_from_text("exits", &text("void cleanup_module(void)"))).unwrap();
    module.unload().unwrap();
    assert!(host.quarantined().is_empty());
}

fn thread_exit_of_a_modules_thread_ends_that() {
    let host = host();
    let text = "
        #include <pthread.h>
        static void *first(void *argument) { pthread_exit(argument); }
        int result(long argument)
        {
            pthread_t thread;
            void *result;
            if (pthread_create(&thread, 0, first, (void *)argument) || pthread_join(thread, &result))
                return -1;
            return (int)(long)result;
        }";
    let module = host.load(&image_from_text("own", text)).unwrap();
    assert_eq!(call_of(&module, "result", 77), 77);
    module.unload().unwrap();
}

static INNER: std::sync::Mutex<Option<Module>> = std::sync::Mutex::new(None);

/// Calls the other module, and returns whether the call was left.
extern "C-unwind" fn through_the_host() -> c_int {
    let inner = INNER.lock().unwrap().clone().unwrap();
    match calls(&inner, "inner", 0) {
        Err(SymbolError::Left { left, .. }) => c_int::from(left.thrown == Thrown::ThreadExit),
        _ => -1,
    }
}

fn thread_exit_leaves_the_innermost_call() {
    #[expect(clippy::as_conversions, reason = "the address of a function, to be exported")]
    let through = through_the_host as extern "C-unwind" fn() -> c_int as *const c_void;
    let host = Host::builder().process_symbols().export("through_the_host", through).build().unwrap();
    let inner = "#include <pthread.h>\nint inner(long unused) { (void)unused; pthread_exit(0); }";
    let outer = "int through_the_host(void);\nint outer(long unused) { (void)unused; return through_the_host() + 10; }";
    *INNER.lock().unwrap() = Some(host.load(&image_from_text("inner", inner)).unwrap());
    let outer = host.load(&image_from_text("outer", outer)).unwrap();
    for _ in 0..3 {
        assert_eq!(call(&outer, "outer"), 11);
    }
    *INNER.lock().unwrap() = None;
}

static REACHED: AtomicU32 = AtomicU32::new(0);
static OUTCOME: AtomicI32 = AtomicI32::new(0);

/// A thread that the C library has started, whose frames may be unwound by force. The thread is cancelled when the
/// module requests it.
fn cancelled(host: &'static Host, body: extern "C-unwind" fn(*mut c_void) -> *mut c_void) -> bool {
    let mut thread = 0;
    let argument = ptr::from_ref(host).cast_mut().cast();
    // SAFETY: only the permitted ways of unwinding differ.
    let body = unsafe {
        std::mem::transmute::<extern "C-unwind" fn(*mut c_void) -> *mut c_void, extern "C" fn(*mut c_void) -> *mut c_void>(
            body,
        )
    };
    // SAFETY: the function takes the host, which lives for ever.
    assert_eq!(unsafe { libc::pthread_create(&raw mut thread, ptr::null(), body, argument) }, 0);
    while REACHED.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: the thread is not joined yet.
    assert_eq!(unsafe { libc::pthread_cancel(thread) }, 0);
    let mut result = ptr::null_mut();
    // SAFETY: ours, joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, &raw mut result) }, 0);
    REACHED.store(0, Ordering::Relaxed);
    result == ptr::without_provenance_mut(usize::MAX)
}

const SLEEPS: &str = "
    #include <unistd.h>
    extern int reached;
    int sleeps(long unused) { (void)unused; reached = 1; for (;;) pause(); }
    int fine(void) { return 42; }";

fn sleeping_host() -> &'static Host {
    let reached: *const u32 = REACHED.as_ptr();
    Box::leak(Box::new(Host::builder().process_symbols().export("reached", reached).build().unwrap()))
}

extern "C-unwind" fn loads(host: *mut c_void) -> *mut c_void {
    // SAFETY: the host lives for ever.
    let host: &Host = unsafe { &*host.cast() };
    let text = format!("{SLEEPS}\nint init_module(void) {{ return sleeps(0); }}");
    let failed = host.load(&image_from_text("cancelled", &text));
    // Not reached: the thread ends.
    OUTCOME.store(if failed.is_err() { 1 } else { 2 }, Ordering::Relaxed);
    ptr::null_mut()
}

fn cancellation_takes_the_load_back_and_ends_the_thread() {
    let host = sleeping_host();
    assert!(cancelled(host, loads), "the thread was cancelled");
    assert_eq!(OUTCOME.load(Ordering::Relaxed), 0, "it did not go on");
    assert_eq!(host.modules(), [], "the load was taken back");
    assert!(host.quarantined().is_empty());
    host.load(&image_from_text("cancelled", SLEEPS)).unwrap().unload().unwrap();
}

extern "C-unwind" fn calls_it(host: *mut c_void) -> *mut c_void {
    // SAFETY: the host lives for ever.
    let host: &Host = unsafe { &*host.cast() };
    let module = host.module("sleeps").unwrap();
    let left = calls(&module, "sleeps", 0);
    OUTCOME.store(if left.is_err() { 1 } else { 2 }, Ordering::Relaxed);
    ptr::null_mut()
}

fn cancellation_takes_the_call_back() {
    let host = sleeping_host();
    let module = host.load(&image_from_text("sleeps", SLEEPS)).unwrap();
    assert!(cancelled(host, calls_it));
    assert_eq!(OUTCOME.load(Ordering::Relaxed), 0);
    assert_eq!(call(&module, "fine"), 42);
    // The unwinding dropped the reference that the thread held.
    module.unload().unwrap();
}

fn cancellation_does_not_end_a_thread_of_rusts() {
    let host = sleeping_host();
    let module = host.load(&image_from_text("sleeps", SLEEPS)).unwrap();
    let caller = module.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        // SAFETY: returns the id of this thread.
        tell.send(unsafe { libc::pthread_self() }).unwrap();
        left(calls(&caller, "sleeps", 0).unwrap_err()).0
    });
    let id = told.recv().unwrap();
    while REACHED.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: the thread exists, because it sleeps.
    assert_eq!(unsafe { libc::pthread_cancel(id) }, 0);
    assert_eq!(thread.join().unwrap(), Thrown::Cancelled, "it has gone on");
    module.unload().unwrap();
}

fn a_failed_load_leaves_its_threads_their_text() {
    let host = host();
    let begins = "
        #include <pthread.h>
        #include <unistd.h>
        extern volatile int turns;
        static void *lingers(void *nothing) { for (int i = 0; i < 20; i++) { usleep(10000); turns++; } return nothing; }
        static void begin(void)
        {
            pthread_t thread;
            pthread_create(&thread, 0, lingers, 0);
            pthread_detach(thread);
        }";
    let variants = [
        "int init_module(void) { begin(); return -5; }",
        "__attribute__((constructor)) static void first(void) { begin(); }\nint init_module(void) { return -5; }",
        "int init_module(void) { begin(); pthread_exit(0); }",
    ];
    let turns: *const u32 = REACHED.as_ptr();
    drop(host);
    let host = Host::builder().process_symbols().export("turns", turns).build().unwrap();
    for (number, variant) in variants.into_iter().enumerate() {
        let recording = host.record();
        let failed = host.load(&image_from_text("lingers", &format!("{begins}\n{variant}"))).unwrap_err();
        assert_eq!(failed.stage, Stage::Init);
        assert_eq!(host.modules(), []);
        let names: Vec<_> = host.quarantined().iter().map(|module| module.name().to_owned()).collect();
        assert_eq!(names, ["lingers"], "variant {number}");
        let timeline = recording.finish().to_string();
        assert!(timeline.contains("quarantined") && !timeline.contains("freed"), "{timeline}");
        let turns = || REACHED.load(Ordering::Relaxed);
        while turns() < u32::try_from(20 * (number + 1)).unwrap() {
            assert_ne!(host.quarantined().len(), 0, "its thread still runs");
            thread::sleep(Duration::from_millis(5));
        }
        while !host.quarantined().is_empty() {
            host.sweep();
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn handlers_of_a_module_go_with_it() {
    let host = host();
    let text = "
        #include <stdlib.h>
        extern void *__dso_handle __attribute__((visibility(\"hidden\")));
        extern int log_;
        static void one(void) { log_ = log_ * 10 + 1; }
        static void two(void) { log_ = log_ * 10 + 2; }
        int run(void) { return atexit(one) || atexit(two) || at_quick_exit(one) || __dso_handle != &__dso_handle; }";
    let log: *const u32 = REACHED.as_ptr();
    drop(host);
    let host = Host::builder().process_symbols().export("log_", log).build().unwrap();
    for _ in 0..2 {
        REACHED.store(0, Ordering::Relaxed);
        let module = host.load(&with_libc("handlers", text)).unwrap();
        assert_eq!(call(&module, "run"), 0);
        module.unload().unwrap();
        assert_eq!(REACHED.load(Ordering::Relaxed), 21, "the last one first");
    }
    // No registered function is left for the end of the process.
    let ended = modload_tests::in_fork(|| {
        // SAFETY: calls the functions that are registered for the end of the process.
        unsafe {
            unsafe extern "C" {
                fn quick_exit(status: c_int) -> !;
            }
            quick_exit(0)
        }
    });
    ended.well();
}

fn handlers_of_fork_go_with_a_module() {
    let text = "
        #include <pthread.h>
        extern int log_;
        static void before(void) { log_++; }
        int run(void) { return pthread_atfork(before, before, before); }";
    let log: *const u32 = REACHED.as_ptr();
    let host = Host::builder().process_symbols().export("log_", log).build().unwrap();
    let module = host.load(&with_libc("forks", text)).unwrap();
    assert_eq!(call(&module, "run"), 0);
    modload_tests::in_fork(|| assert_eq!(REACHED.load(Ordering::Relaxed), 2)).well();
    assert_eq!(REACHED.load(Ordering::Relaxed), 2);
    module.unload().unwrap();
    modload_tests::in_fork(|| assert_eq!(REACHED.load(Ordering::Relaxed), 2)).well();
    assert_eq!(REACHED.load(Ordering::Relaxed), 2, "they are withdrawn");
}

const DESTRUCTORS: &str = "
    extern void *__dso_handle __attribute__((visibility(\"hidden\")));
    int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);
    extern int log_;
    static void note(void *number) { log_ = log_ * 10 + (int)(long)number; }
    static void more(void *number)
    {
        note(number);
        __cxa_thread_atexit_impl(note, (void *)9, &__dso_handle);
    }
    int run(void)
    {
        return __cxa_thread_atexit_impl(note, (void *)1, &__dso_handle) ||
            __cxa_thread_atexit_impl(more, (void *)2, &__dso_handle);
    }
    void cleanup_module(void) { note((void *)7); }";

fn logging_host() -> Host {
    let log: *const u32 = REACHED.as_ptr();
    Host::builder().process_symbols().export("log_", log).build().unwrap()
}

fn destructors_of_threads_keep_the_module() {
    let host = logging_host();
    let module = host.load(&image_from_text("destructors", DESTRUCTORS)).unwrap();
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let caller = module.clone();
    let thread = thread::Builder::new()
        .name("owes".into())
        .spawn(move || {
            assert_eq!(call(&caller, "run"), 0);
            drop(caller);
            tell.send(modload_threads::Tid::current()).unwrap();
            assert!(wait.recv().is_err());
        })
        .unwrap();
    let tid = told.recv().unwrap();
    let refused = module.unload().unwrap_err().to_string();
    let says = format!(
        "destructors: its code is not left: thread {tid} \"owes\" has 2 destructors of the module's to call at its end"
    );
    assert_eq!(refused, says);
    assert_eq!(REACHED.load(Ordering::Relaxed), 0);
    drop(end);
    thread.join().unwrap();
    assert_eq!(REACHED.load(Ordering::Relaxed), 291);
    host.unload("destructors").unwrap();
    assert_eq!(REACHED.load(Ordering::Relaxed), 2917);
}

fn destructors_of_the_unloading_thread_run() {
    let host = logging_host();
    for _ in 0..3 {
        REACHED.store(0, Ordering::Relaxed);
        let module = host.load(&image_from_text("destructors", DESTRUCTORS)).unwrap();
        assert_eq!(call(&module, "run"), 0);
        module.unload().unwrap();
        assert_eq!(REACHED.load(Ordering::Relaxed), 7291, "exit, then the last one first, and what those add");
        assert!(host.quarantined().is_empty());
    }
    // In a thread of its own, which ends afterwards: each destructor ran once.
    REACHED.store(0, Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            let module = host.load(&image_from_text("destructors", DESTRUCTORS)).unwrap();
            assert_eq!(call(&module, "run"), 0);
            module.unload().unwrap();
        });
    });
    assert_eq!(REACHED.load(Ordering::Relaxed), 7291);
}

fn destructors_are_a_forked_childs_own() {
    let host = logging_host();
    let module = host.load(&image_from_text("destructors", DESTRUCTORS)).unwrap();
    assert_eq!(call(&module, "run"), 0);
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    let caller = module.clone();
    let thread = thread::spawn(move || {
        assert_eq!(call(&caller, "run"), 0);
        drop(caller);
        tell.send(()).unwrap();
        assert!(wait.recv().is_err());
    });
    told.recv().unwrap();
    drop(module);
    // The child has this thread's destructors. The child does not have the other thread, so it does not have that
    // thread's destructors.
    let in_child = || {
        host.unload("destructors").unwrap();
        assert_eq!(REACHED.load(Ordering::Relaxed), 7291);
    };
    modload_tests::in_fork(in_child).well();
    drop(end);
    thread.join().unwrap();
    assert_eq!(REACHED.load(Ordering::Relaxed), 291);
    host.unload("destructors").unwrap();
}
