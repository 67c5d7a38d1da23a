//! Thread-local variables of modules: every model of every compiler, in every thread, until the module is unloaded.

use std::ffi::c_int;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use modload::error::sentence;
use modload::{Host, Image, Module};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{case, handle, in_fork, run};

fn main() -> ExitCode {
    run(&[
        case!(every_model_in_every_thread),
        case!(threads_that_are_born_during_a_load_have_the_contents).within_seconds(120),
        case!(a_slice_that_is_taken_again_begins_anew),
        case!(small_modules_get_a_part_of_the_reserve_if_it_costs_nothing),
        case!(descriptors_preserve_every_register),
        case!(a_signal_handler_may_be_the_first),
        case!(copies_are_aligned_and_freed),
        case!(a_thousand_modules_have_variables),
        case!(variables_of_other_modules_and_of_libraries).needing("g++"),
        case!(call_once_and_async_of_cxx).needing("g++"),
        case!(destructors_of_cxx_keep_the_module).needing("g++"),
        case!(values_of_keys_keep_the_module),
        case!(keys_are_deleted_with_their_module),
        case!(a_checkpoint_calls_the_destructors_that_an_unload_awaits).needing("g++"),
        case!(a_thread_that_leaves_begins_anew).needing("g++"),
        case!(forked_children_have_their_own),
        case!(what_does_not_fit_is_refused_by_name),
        case!(a_thread_that_cannot_be_reached_is_named),
    ])
}

fn host() -> Host {
    // SAFETY: the C++ runtime, whose constructors do no harm. The runtime may be missing if no case needs it.
    unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    Host::builder().process_symbols().build().unwrap()
}

fn compiled(name: &str, text: &str, compiler: Compiler, flags: &[&str]) -> Image<'static> {
    let flags = [&["-O2"], flags].concat();
    let object = object_from_text(name, Language::C, text, compiler, &flags).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn pic(name: &str, text: &str) -> Image<'static> {
    compiled(name, text, Compiler::Cc, &["-fPIC"])
}

fn cxx(name: &str, text: &str) -> Image<'static> {
    let object = object_from_text(name, Language::Cxx, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn call_with(module: &Module, name: &str, argument: u64) -> i64 {
    // SAFETY: the texts have functions that take an integer or nothing, and return a long.
    unsafe { module.call(name, &[argument]) }.unwrap().cast_signed()
}

fn call(module: &Module, name: &str) -> i64 {
    call_with(module, name, 0)
}

/// Returns the address of a function, for code that calls it without a reference to the module.
fn address(module: &Module, name: &str) -> u64 {
    // SAFETY: the texts have functions without parameters of these names.
    let function = unsafe { module.symbol::<extern "C" fn() -> i64>(name) }.unwrap();
    let function: extern "C" fn() -> i64 = *function;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let at = function as *const ();
    u64::try_from(at.expose_provenance()).unwrap()
}

/// Global, static, zero, pointer and array variables, in an order that needs padding.
const VARIABLES: &str = r#"
    __thread char first = 'a';
    __thread long number = 5;
    __thread long zeros[100];
    static __thread int local = 77;
    static __thread int local_zero;
    __thread const char *text = "hello";
    static __thread long *self = 0;
    static long *address(void) { return &number; }
    long (*volatile keep)(void);
    /* What a thread finds: 0 if everything is as it was compiled. */
    long fresh(void)
    {
        long wrong = first != 'a' || number != 5 || local != 77 || local_zero || text[1] != 'e' || self;
        for (int at = 0; at < 100; at++)
            wrong += zeros[at] != 0;
        return wrong;
    }
    /* Changes each variable, and returns what the variables make together. */
    long work(long seed)
    {
        self = address();
        for (int at = 0; at < 1000; at++) {
            number += seed;
            zeros[at % 100] += at;
            local++;
            local_zero += 2;
        }
        first++;
        return *self + local + local_zero + zeros[7] + first + text[0];
    }"#;

fn worked(seed: i64) -> i64 {
    let zeros: i64 = (0..1000).filter(|at| at % 100 == 7).sum();
    5 + 1000 * seed + 1077 + 2000 + zeros + i64::from(b'b') + i64::from(b'h')
}

const MODELS: [(&str, &[&str]); 10] = [
    ("dynamic", &["-fPIC"]),
    ("dynamic_no_plt", &["-fPIC", "-fno-plt"]),
    ("dynamic_o0", &["-fPIC", "-O0"]),
    ("descriptors", &["-fPIC", "-mtls-dialect=gnu2"]),
    ("large", &["-fPIC", "-mcmodel=large"]),
    ("initial", &["-fPIC", "-ftls-model=initial-exec"]),
    ("local", &["-fPIC", "-ftls-model=local-exec"]),
    ("pie", &["-fPIE"]),
    ("no_pic", &["-fno-pic"]),
    ("sections", &["-fPIC", "-fdata-sections", "-ffunction-sections"]),
];

fn compilers() -> Vec<Compiler> {
    [Compiler::Cc, Compiler::Gcc, Compiler::Clang].into_iter().filter(|compiler| compiler.find().is_some()).collect()
}

fn every_model_in_every_thread() {
    let host = host();
    for compiler in compilers() {
        for (name, flags) in MODELS {
            let module = host.load(&compiled(name, VARIABLES, compiler, flags)).unwrap();
            let barrier = Barrier::new(64);
            thread::scope(|scope| {
                for seed in 0..64 {
                    let (module, barrier) = (&module, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        assert_eq!(call(module, "fresh"), 0, "{name} by {compiler:?}");
                        assert_eq!(
                            call_with(module, "work", seed),
                            worked(seed.cast_signed()),
                            "{name} by {compiler:?}"
                        );
                        assert_ne!(call(module, "fresh"), 0);
                    });
                }
            });
            in_fork(|| {
                assert_eq!(call(&module, "fresh"), 0);
                assert_eq!(call_with(&module, "work", 3), worked(3));
                let of_thread = thread::scope(|scope| scope.spawn(|| call(&module, "fresh")).join().unwrap());
                assert_eq!(of_thread, 0);
            })
            .well();
            assert_eq!(call(&module, "fresh"), 0, "the child's are its own");
            module.unload().unwrap();
        }
    }
    assert_eq!(modload_tls::usage().blocks, 0);
}

/// Threads are started all the time while modules are loaded whose code has no check at an access.
fn threads_that_are_born_during_a_load_have_the_contents() {
    static CHECK: AtomicU64 = AtomicU64::new(0);
    static CHECKED: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU64 = AtomicU64::new(0);
    static INSIDE: AtomicU64 = AtomicU64::new(0);
    let host = host();
    let end = AtomicBool::new(false);
    let wait = || thread::sleep(Duration::from_micros(200));
    let check = move || {
        // A thread lives across the load of a module, or is born meanwhile, and looks as soon as it can.
        for _ in 0..20 {
            INSIDE.fetch_add(1, Ordering::SeqCst);
            let at = CHECK.load(Ordering::SeqCst);
            if at != 0 {
                let at = std::ptr::with_exposed_provenance::<()>(usize::try_from(at).unwrap());
                // SAFETY: the address of `fresh`, whose module is not unloaded while a thread is here.
                let fresh = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> i64>(at) };
                WRONG.fetch_add(u64::from(fresh() != 0), Ordering::Relaxed);
                CHECKED.fetch_add(1, Ordering::Relaxed);
            }
            INSIDE.fetch_sub(1, Ordering::SeqCst);
            wait();
        }
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let threads: Vec<_> = (0..8).map(|_| thread::spawn(check)).collect();
                    threads.into_iter().for_each(|thread| thread.join().unwrap());
                }
            });
        }
        for round in 0..60 {
            let (name, flags) = MODELS[[5, 6, 7][round % 3]];
            let module = host.load(&compiled(name, VARIABLES, Compiler::Cc, flags)).unwrap();
            CHECK.store(address(&module, "fresh"), Ordering::SeqCst);
            let before = CHECKED.load(Ordering::Relaxed);
            while CHECKED.load(Ordering::Relaxed) < before + 50 {
                wait();
            }
            CHECK.store(0, Ordering::SeqCst);
            while INSIDE.load(Ordering::SeqCst) != 0 {
                thread::yield_now();
            }
            module.unload().unwrap();
        }
        end.store(true, Ordering::Relaxed);
    });
    assert_eq!(WRONG.load(Ordering::Relaxed), 0, "of {}", CHECKED.load(Ordering::Relaxed));
}

fn a_slice_that_is_taken_again_begins_anew() {
    let host = host();
    let (ask, questions) = mpsc::channel::<Module>();
    let (answer, answers) = mpsc::channel();
    // A thread that lives as long as all modules.
    let other = thread::spawn(move || {
        for module in questions {
            answer.send((call(&module, "fresh"), call_with(&module, "work", 1))).unwrap();
        }
    });
    let zeros = "__thread long a[20]; long fresh(void) { long wrong = 0; for (int at = 0; at < 20; at++) wrong += a[at] != 0; \
                 return wrong; } long work(long seed) { for (int at = 0; at < 20; at++) a[at] = seed; return seed; }";
    for round in 0..6 {
        let (text, result) = if round % 2 == 0 { (VARIABLES, worked(1)) } else { (zeros, 1) };
        let module = host.load(&compiled("again", text, Compiler::Cc, &["-fPIE"])).unwrap();
        assert_eq!(call(&module, "fresh"), 0, "round {round}");
        assert_eq!(call_with(&module, "work", 1), result);
        ask.send(module.clone()).unwrap();
        assert_eq!(answers.recv().unwrap(), (0, result), "round {round}");
        // The other thread drops its reference a moment later.
        drop(module);
        host.unload_within("again", Duration::from_secs(10)).unwrap();
    }
    drop(ask);
    other.join().unwrap();
}

/// Whether a module's code adds a constant to the thread pointer: the instruction of local exec.
fn is_relaxed(module: &Module) -> bool {
    let at = std::ptr::with_exposed_provenance::<u8>(usize::try_from(address(module, "next")).unwrap());
    // SAFETY: the function has more than these bytes.
    let code = unsafe { std::slice::from_raw_parts(at, 40) };
    code.windows(5).any(|bytes| bytes == [0x64, 0x48, 0x8b, 0x04, 0x25])
}

fn small_modules_get_a_part_of_the_reserve_if_it_costs_nothing() {
    let host = host();
    let small = |name: &str, value: u64, count: usize| {
        let text = format!("__thread long number = {value}, others[{count}]; long next(void) {{ return ++number; }}");
        host.load(&pic(name, &text)).unwrap()
    };
    // The process has one thread.
    let (first, large) = (small("first", 3, 1), small("large", 3, 80));
    assert_eq!([is_relaxed(&first), is_relaxed(&large)], [true, false]);
    let (end, ended) = mpsc::channel::<()>();
    let other = thread::spawn(move || assert!(ended.recv().is_err()));
    let (zero, set) = (small("zero", 0, 1), small("set", 3, 1));
    assert_eq!([is_relaxed(&zero), is_relaxed(&set)], [true, false]);
    thread::scope(|scope| {
        scope.spawn(|| {
            let all = [&first, &large, &zero, &set];
            assert_eq!(all.map(|module| call(module, "next")), [4, 4, 1, 4]);
        });
    });
    // A part that was in use is not zero in other threads.
    zero.unload().unwrap();
    let zero = small("zero", 0, 2);
    assert!(is_relaxed(&zero), "another part was never used");
    drop(end);
    other.join().unwrap();
    // Half of the reserve is left for modules that need it.
    let many: Vec<_> = (0..100).map(|number| small(&format!("many_{number}"), 0, 60)).collect();
    assert!(!is_relaxed(many.last().unwrap()));
    let half = "__thread char bytes[4000]; long next(void) { return ++bytes[3999]; }";
    assert_eq!(call(&host.load(&compiled("needs", half, Compiler::Cc, &["-fPIE"])).unwrap(), "next"), 1);
}

/// Fills every register, calls a descriptor, and returns how many registers have changed. The first call in a thread
/// takes the slow path.
const REGISTERS: &str = r#"
    /* Too large for a spare part of the reserve. */
    __thread long others[100];
    __thread long variable = 42;
    long registers(void)
    {
        unsigned long general[14], vectors[16][4], flags, offset;
        __asm__ volatile(
            "movq $0x1111, %%rbx; movq $0x2222, %%rcx; movq $0x3333, %%rdx; movq $0x4444, %%rsi; movq $0x5555, %%rdi\n"
            "movq $0x6666, %%r8; movq $0x7777, %%r9; movq $0x8888, %%r10; movq $0x9999, %%r11; movq $0xaaaa, %%r12\n"
            "movq $0xbbbb, %%r13\n"
            "movq %%rbx, %%xmm0; punpcklqdq %%xmm0, %%xmm0\n"
            "movdqa %%xmm0, %%xmm1; movdqa %%xmm0, %%xmm7; movdqa %%xmm0, %%xmm8; movdqa %%xmm0, %%xmm15\n"
            "leaq variable@tlsdesc(%%rip), %%rax\n"
            "call *variable@tlscall(%%rax)\n"
            "movq %%rbx, 0(%[g]); movq %%rcx, 8(%[g]); movq %%rdx, 16(%[g]); movq %%rsi, 24(%[g]); movq %%rdi, 32(%[g])\n"
            "movq %%r8, 40(%[g]); movq %%r9, 48(%[g]); movq %%r10, 56(%[g]); movq %%r11, 64(%[g]); movq %%r12, 72(%[g])\n"
            "movq %%r13, 80(%[g])\n"
            "movdqu %%xmm0, 0(%[v]); movdqu %%xmm1, 16(%[v]); movdqu %%xmm7, 32(%[v]); movdqu %%xmm8, 48(%[v])\n"
            "movdqu %%xmm15, 64(%[v])\n"
            "movq %%rax, %[o]\n"
            : [o] "=m"(offset)
            : [g] "r"(general), [v] "r"(vectors)
            : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "memory", "cc",
              "xmm0", "xmm1", "xmm7", "xmm8", "xmm15");
        long changed = 0;
        for (int at = 0; at < 11; at++)
            changed += general[at] != 0x1111ul * (at + 1);
        for (int at = 0; at < 10; at++)
            changed += ((unsigned long *)vectors)[at] != 0x1111;
        unsigned long pointer;
        __asm__("movq %%fs:0, %0" : "=r"(pointer));
        if (*(long *)(pointer + offset) != 42)
            changed += 100;
        return changed;
    }"#;

fn descriptors_preserve_every_register() {
    let host = host();
    // The compiler has two registers left for the two arrays; the stack protector's are not needed.
    let module =
        host.load(&compiled("registers", REGISTERS, Compiler::Cc, &["-fPIC", "-fomit-frame-pointer"])).unwrap();
    for _ in 0..3 {
        assert_eq!(call(&module, "registers"), 0);
        thread::scope(|scope| assert_eq!(scope.spawn(|| call(&module, "registers")).join().unwrap(), 0));
    }
}

static HANDLED: AtomicI64 = AtomicI64::new(-1);
static HANDLE: AtomicU64 = AtomicU64::new(0);

extern "C" fn touch(_signal: c_int) {
    let at = std::ptr::with_exposed_provenance::<()>(usize::try_from(HANDLE.load(Ordering::SeqCst)).unwrap());
    // SAFETY: the address of `fresh`, whose module is loaded while the signal is sent.
    let fresh = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> i64>(at) };
    HANDLED.store(fresh(), Ordering::SeqCst);
}

fn a_signal_handler_may_be_the_first() {
    let host = host();
    handle(libc::SIGUSR1, touch);
    for (name, flags) in MODELS {
        let module = host.load(&compiled(name, VARIABLES, Compiler::Cc, flags)).unwrap();
        HANDLE.store(address(&module, "fresh"), Ordering::SeqCst);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    HANDLED.store(-1, Ordering::SeqCst);
                    // SAFETY: raise takes a number, and the handler is installed.
                    unsafe { libc::raise(libc::SIGUSR1) };
                    assert_eq!(call_with(&module, "work", 2), worked(2));
                });
            }
        });
        assert_eq!(HANDLED.load(Ordering::SeqCst), 0, "{name}");
        module.unload().unwrap();
    }
}

fn copies_are_aligned_and_freed() {
    let host = host();
    for align in [1, 16, 64, 256, 4096] {
        for size in [1, 100, 5000, 100_000] {
            let text = format!(
                "__attribute__((aligned({align}))) __thread unsigned char bytes[{size}] = {{7}};
                 long check(void)
                 {{
                     long wrong = (unsigned long)bytes % {align} != 0 || bytes[0] != 7;
                     for (long at = 1; at < {size}; at++) wrong += bytes[at] != 0;
                     for (long at = 0; at < {size}; at++) bytes[at] = 0xee;
                     return wrong;
                 }}"
            );
            let module = host.load(&pic("aligned", &text)).unwrap();
            for _ in 0..2 {
                thread::scope(|scope| {
                    for _ in 0..8 {
                        scope.spawn(|| assert_eq!(call(&module, "check"), 0, "{size} aligned to {align}"));
                    }
                });
            }
            assert_eq!(call(&module, "check"), 0);
            module.unload().unwrap();
        }
    }
    let usage = modload_tls::usage();
    assert_eq!(usage.blocks, 0);
    // Threads free their copies when they end; what stays is one chunk for each size.
    assert!(usage.tables <= 2 && usage.bytes <= 10 * (64 << 10), "{usage:?}");
    let too_far = "__attribute__((aligned(8192))) __thread char a; long check(void) { return (long)&a; }";
    let refused = sentence(&host.load(&pic("aligned", too_far)).unwrap_err());
    assert!(refused.contains("0x2000"), "{refused}");
}

fn a_thousand_modules_have_variables() {
    let host = host();
    let text = "__thread long number = 3; long next(void) { return ++number; }";
    let object = object_from_text("many", Language::C, text, Compiler::Cc, &["-O2", "-fPIC"]).unwrap();
    let bytes = std::fs::read(object).unwrap();
    let load = |number: usize| {
        // SAFETY: the text above.
        host.load(&unsafe { Image::trusted(&*bytes) }.named(format!("many_{number}"))).unwrap()
    };
    let modules: Vec<_> = (0..1000).map(load).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for expected in [4, 5] {
                    assert!(modules.iter().all(|module| call(module, "next") == expected));
                }
            });
        }
    });
    assert_eq!(modload_tls::usage().blocks, 1000);
    drop(modules);
    assert!(host.unload_all().is_empty());
    assert_eq!(modload_tls::usage().blocks, 0);
}

fn sharing_host() -> Host {
    Host::builder().process_symbols().export_globals().build().unwrap()
}

fn variables_of_other_modules_and_of_libraries() {
    let host = sharing_host();
    for (way, flags) in [("dynamic", &["-fPIC"][..]), ("fixed", &["-fPIC", "-ftls-model=initial-exec"])] {
        let provider = "__thread long shared = 9, others[100]; long mine(void) { return shared; }";
        let user = "extern __thread long shared; long step(void) { return ++shared; }";
        let provider = host.load(&compiled("provider", provider, Compiler::Cc, flags)).unwrap();
        let user = host.load(&compiled("user", user, Compiler::Cc, flags)).unwrap();
        for _ in 0..2 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    assert_eq!([call(&user, "step"), call(&provider, "mine")], [10, 10], "{way}");
                });
            });
        }
        assert_eq!([call(&provider, "mine"), call(&user, "step"), call(&provider, "mine")], [9, 10, 10], "{way}");
        let held = sentence(&provider.clone().unload().unwrap_err());
        assert!(held.contains("user"), "{held}");
        user.unload().unwrap();
        drop(provider);
        host.unload("provider").unwrap();
    }
    // The code needs a fixed offset, and the provider has none.
    let provider = "__thread long shared = 9, others[100]; long mine(void) { return shared; }";
    let provider = host.load(&compiled("provider", provider, Compiler::Cc, &["-fPIC"])).unwrap();
    let user = "extern __thread long shared; long step(void) { return ++shared; }";
    let refused = sentence(&host.load(&compiled("user", user, Compiler::Cc, &["-fPIE"])).unwrap_err());
    assert!(refused.contains("\"shared\"") && refused.contains("-ftls-model=global-dynamic"), "{refused}");
    // A plain access to it, and a thread-local access to something else.
    let plain = "extern long shared; long step(void) { return ++shared; }";
    let refused = sentence(&host.load(&compiled("user", plain, Compiler::Cc, &["-fPIC"])).unwrap_err());
    assert!(refused.contains("it is a thread-local variable"), "{refused}");
    let other = "extern __thread long mine; long step(void) { return ++mine; }";
    let refused = sentence(&host.load(&compiled("user", other, Compiler::Cc, &["-fPIC"])).unwrap_err());
    assert!(refused.contains("and is none"), "{refused}");
    let nothing = "extern __thread long nowhere; long step(void) { return ++nowhere; }";
    let refused = sentence(&host.load(&compiled("user", nothing, Compiler::Cc, &["-fPIC"])).unwrap_err());
    assert!(refused.contains("neither a module nor a library"), "{refused}");
    // C++ defines an inline variable in each object, and means one.
    let inline = |name: &str| {
        let step = format!("extern \"C\" long step_{name}(void) {{ return ++counter; }}");
        host.load(&cxx(name, &format!("inline thread_local long counter = 1; {step}"))).unwrap()
    };
    let (one, two) = (inline("one"), inline("two"));
    assert_eq!([call(&one, "step_one"), call(&two, "step_two"), call(&one, "step_one")], [2, 3, 4]);
    drop(provider);
}

fn call_once_and_async_of_cxx() {
    let host = host();
    let text = r#"
        #include <future>
        #include <mutex>
        #include <vector>
        static std::once_flag flag;
        static int count;
        extern "C" long once(void) { std::call_once(flag, [] { count++; }); return count; }
        extern "C" long later(long number)
        {
            std::vector<std::future<long>> all;
            for (long at = 0; at < 8; at++)
                all.push_back(std::async(std::launch::async, [=] { once(); return number + at; }));
            long sum = 0;
            for (auto &one : all)
                sum += one.get();
            return sum;
        }"#;
    let module = host.load(&cxx("later", text)).unwrap();
    assert_eq!((call(&module, "once"), call_with(&module, "later", 100), call(&module, "once")), (1, 828, 1));
    drop(module);
    host.unload_within("later", Duration::from_secs(10)).unwrap();
}

static LOG: AtomicU32 = AtomicU32::new(0);

fn logging_host() -> Host {
    // SAFETY: the C++ runtime, whose constructors do no harm. The runtime may be missing if no case needs it.
    unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    let log: *const u32 = LOG.as_ptr();
    Host::builder().process_symbols().export("log_", log).build().unwrap()
}

const DESTRUCTED: &str = r#"
    #include <string>
    extern "C" int log_;
    static thread_local long calls = 10;
    struct Noted {
        int digit;
        std::string text = "a text that is too long to be stored inside of the string itself";
        ~Noted() { __atomic_store_n(&log_, __atomic_load_n(&log_, 0) * 10 + digit, 0); }
    };
    static thread_local Noted one{1}, two{2};
    extern "C" long use(void) { return ++calls + one.text.size() * 0 + two.text.size() * 0; }"#;

fn destructors_of_cxx_keep_the_module() {
    let host = logging_host();
    let module = host.load(&cxx("destructed", DESTRUCTED)).unwrap();
    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let user = module.clone();
    let thread = thread::Builder::new().name("owes".into()).spawn(move || {
        begin.send([call(&user, "use"), call(&user, "use")]).unwrap();
        drop(user);
        assert!(ended.recv().is_err());
    });
    assert_eq!(begun.recv().unwrap(), [11, 12]);
    drop(module);
    let refused = sentence(&host.unload_within("destructed", Duration::from_millis(100)).unwrap_err());
    assert!(refused.contains("\"owes\" has 2 destructors of the module's to call at its end"), "{refused}");
    assert_eq!(LOG.load(Ordering::Relaxed), 0);
    drop(end);
    thread.unwrap().join().unwrap();
    assert_eq!(LOG.load(Ordering::Relaxed), 21, "the last one first");
    host.unload("destructed").unwrap();
    assert_eq!(modload_tls::usage().blocks, 0);
}

/// A key whose destructor sets another value once more.
const KEYS: &str = "
    #include <pthread.h>
    extern int log_;
    static pthread_key_t first, second;
    static void note(void *value) { log_ = log_ * 10 + (int)(long)value; }
    static void again(void *value)
    {
        note(value);
        if ((long)value < 5)
            pthread_setspecific(second, (void *)((long)value + 1));
    }
    int init_module(void) { return pthread_key_create(&first, note) || pthread_key_create(&second, again) ? -12 : 0; }
    long set(void)
    {
        pthread_setspecific(first, (void *)1);
        pthread_setspecific(second, (void *)4);
        return (long)pthread_getspecific(first) * 10 + (long)pthread_getspecific(second);
    }
    long clear(void) { return pthread_setspecific(first, 0) + pthread_setspecific(second, 0); }";

fn values_of_keys_keep_the_module() {
    let host = logging_host();
    let module = host.load(&pic("keyed", KEYS)).unwrap();
    let (begin, begun) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let user = module.clone();
    let thread = thread::Builder::new().name("owes".into()).spawn(move || {
        begin.send(call(&user, "set")).unwrap();
        drop(user);
        assert!(ended.recv().is_err());
    });
    assert_eq!(begun.recv().unwrap(), 14);
    drop(module);
    let refused = sentence(&host.unload_within("keyed", Duration::from_millis(100)).unwrap_err());
    assert!(refused.contains("\"owes\" has 2 destructors of the module's to call at its end"), "{refused}");
    drop(end);
    thread.unwrap().join().unwrap();
    assert_eq!(LOG.load(Ordering::Relaxed), 145, "in the order of the keys, and again for a new value");
    // A value that is null again needs no destructor; the unloading thread calls its own.
    LOG.store(0, Ordering::Relaxed);
    let module = host.module("keyed").unwrap();
    assert_eq!((call(&module, "set"), call(&module, "clear")), (14, 0));
    assert_eq!(call(&module, "set"), 14);
    module.unload().unwrap();
    assert_eq!(LOG.load(Ordering::Relaxed), 145);
}

/// A process has 1,024 keys.
fn keys_are_deleted_with_their_module() {
    let host = logging_host();
    let image = pic("keyed", KEYS);
    for _ in 0..2000 {
        let module = host.load(&image).unwrap();
        assert_eq!(call(&module, "set"), 14);
        module.unload().unwrap();
    }
}

fn a_checkpoint_calls_the_destructors_that_an_unload_awaits() {
    let host = Arc::new(logging_host());
    let module = host.load(&cxx("destructed", DESTRUCTED)).unwrap();
    let (begin, begun) = mpsc::channel();
    let end = Arc::new(AtomicBool::new(false));
    let (user, its_host, its_end) = (module.clone(), host.clone(), end.clone());
    let thread = thread::spawn(move || {
        its_host.checkpoint();
        begin.send(call(&user, "use")).unwrap();
        drop(user);
        while !its_end.load(Ordering::Relaxed) {
            its_host.checkpoint();
            thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(begun.recv().unwrap(), 11);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(LOG.load(Ordering::Relaxed), 0, "no unload waits for them");
    drop(module);
    host.unload_within("destructed", Duration::from_secs(20)).unwrap();
    assert_eq!(LOG.load(Ordering::Relaxed), 21);
    end.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

fn a_thread_that_leaves_begins_anew() {
    let host = logging_host();
    for flags in [&["-fPIC"][..], &["-fPIC", "-ftls-model=local-exec"]] {
        LOG.store(0, Ordering::Relaxed);
        let flags = [&["-O2"], flags].concat();
        let object = object_from_text("destructed", Language::Cxx, DESTRUCTED, Compiler::Cc, &flags).unwrap();
        // SAFETY: the text is ours.
        let module = host.load(&unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named("destructed")).unwrap();
        assert!(host.leave_thread(), "nothing was used yet");
        assert_eq!([call(&module, "use"), call(&module, "use")], [11, 12]);
        assert!(host.leave_thread());
        assert_eq!(LOG.load(Ordering::Relaxed), 21);
        assert_eq!(call(&module, "use"), 11, "the variables are constructed again");
        assert!(host.leave_thread());
        assert_eq!(LOG.load(Ordering::Relaxed), 2121);
        module.unload().unwrap();
        assert_eq!(LOG.load(Ordering::Relaxed), 2121);
    }
}

fn forked_children_have_their_own() {
    let host = host();
    let module = host.load(&pic("forked", VARIABLES)).unwrap();
    assert_eq!(call_with(&module, "work", 1), worked(1));
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        // Other threads are in the slow path all the time, and have copies that the child frees.
        for _ in 0..4 {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    thread::scope(|inner| {
                        inner.spawn(|| assert_eq!(call(&module, "fresh"), 0));
                    });
                }
            });
        }
        for _ in 0..50 {
            in_fork(|| {
                assert_ne!(call(&module, "fresh"), 0, "the forking thread's copy");
                assert_eq!(modload_tls::usage().tables, 1);
                thread::scope(|inner| {
                    inner.spawn(|| assert_eq!(call(&module, "fresh"), 0));
                });
                host.unload("forked").unwrap_err();
            })
            .well();
        }
        end.store(true, Ordering::Relaxed);
    });
}

fn what_does_not_fit_is_refused_by_name() {
    let host = host();
    let fixed = |text: &str| compiled("large", text, Compiler::Cc, &["-fPIE"]);
    let refused = |text: &str| sentence(&host.load(&fixed(text)).unwrap_err());
    let said = refused("__thread char bytes[9000]; char *get(void) { return bytes; }");
    assert!(said.contains("9000 bytes") && said.contains("8128 are left"), "{said}");
    assert!(said.contains("-ftls-model=global-dynamic") && said.contains("large-static-tls"), "{said}");
    let said = refused("__attribute__((aligned(128))) __thread char byte; char *get(void) { return &byte; }");
    assert!(said.contains("0x80") && said.contains("0x40"), "{said}");
    // What was asked for in vain has taken nothing.
    let most = fixed("__thread char bytes[8128]; char *get(void) { return bytes; }");
    for _ in 0..2 {
        host.load(&most).unwrap().unload().unwrap();
    }
    let half = "__thread char bytes[5000]; char *get(void) { return bytes; }";
    let first = host.load(&fixed(half).named("first")).unwrap();
    let said = refused(half);
    assert!(said.contains("5000 bytes") && said.contains("3128 are left"), "{said}");
    // The same module without fixed offsets has room.
    host.load(&pic("large", half)).unwrap();
    drop(first);
}

fn a_thread_that_cannot_be_reached_is_named() {
    let host = host();
    let (end, ended) = mpsc::channel::<()>();
    let (begin, begun) = mpsc::channel();
    let thread = thread::Builder::new().name("deaf".into()).spawn(move || {
        modload_tests::mask(libc::SIG_BLOCK, u64::MAX);
        begin.send(()).unwrap();
        assert!(ended.recv().is_err());
    });
    begun.recv().unwrap();
    let refused = sentence(&host.load(&compiled("fixed", VARIABLES, Compiler::Cc, &["-fPIE"])).unwrap_err());
    assert!(refused.contains("\"deaf\" blocks the signal"), "{refused}");
    // Variables that each thread makes itself need no such thread.
    let module = host.load(&pic("dynamic", VARIABLES)).unwrap();
    assert_eq!(call(&module, "fresh"), 0);
    drop(end);
    thread.unwrap().join().unwrap();
    let fixed = host.load(&compiled("fixed", VARIABLES, Compiler::Cc, &["-fPIE"])).unwrap();
    assert_eq!(call(&fixed, "fresh"), 0);
}
