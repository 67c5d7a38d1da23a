//! A thread belongs to the module that created the thread, for any code between the thread's start and the module's
//! code.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use modload::module::Occupies;
use modload::trace::{Mode, TraceOptions};
use modload::{Host, Image, UnloadError};
use modload_fixtures::{Compiler, Language, object_from_text};
use modload_tests::{Crowd, case, image_from_text, run};
use modload_threads::frames::{StartsUnknown, thread_starts};

fn main() -> ExitCode {
    run(&[
        case!(a_std_thread_that_exit_joins_is_the_modules).needing("g++"),
        case!(a_std_thread_that_cannot_start_throws_as_ever).needing("g++"),
        case!(an_async_task_that_exit_waits_for_is_the_modules).needing("g++"),
        case!(a_std_thread_that_cannot_be_asked_is_the_modules).needing("g++"),
        case!(threads_of_c11_and_of_tail_calls_are_the_modules),
        case!(a_thread_that_began_under_a_graph_trace_is_the_modules),
        case!(a_thread_of_another_module_is_not),
        case!(a_failure_to_learn_how_threads_begin_is_not_kept),
        case!(creators_among_many_threads).within_seconds(120),
    ])
}

fn host() -> Host {
    // SAFETY: the C++ runtime, whose constructors do no harm. The runtime may be missing if no case needs it.
    unsafe { libc::dlopen(c"libstdc++.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    Host::builder().process_symbols().build().unwrap()
}

fn built(name: &str, language: Language, text: &str, options: &[&str]) -> Image<'static> {
    let options = [&["-O2", "-fPIC"], options].concat();
    let object = object_from_text(name, language, text, Compiler::Cc, &options).unwrap();
    // SAFETY: the texts are ours.
    unsafe { Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn call(host: &Host, name: &str) -> u64 {
    let modules = host.look();
    let at = modules.iter().find_map(|(module, _)| module.symbol_info(name)).unwrap().addr.get();
    // SAFETY: the texts have functions without arguments.
    let function: extern "C" fn() -> u64 = unsafe { std::mem::transmute(usize::try_from(at).unwrap()) };
    function() & 0xffff_ffff
}

fn until(host: &Host, name: &str, at_least: u64) {
    while call(host, name) < at_least {
        thread::sleep(Duration::from_millis(1));
    }
}

fn a_std_thread_that_exit_joins_is_the_modules() {
    let host = host();
    let text = r#"
        #include <atomic>
        #include <chrono>
        #include <thread>
        static std::atomic<bool> stopped;
        static std::atomic<int> turns;
        static std::thread *worker;
        extern "C" int start(void)
        {
            stopped = false;
            worker = new std::thread([](int by) {
                while (!stopped) { turns += by; std::this_thread::sleep_for(std::chrono::milliseconds(1)); }
            }, 1);
            return 0;
        }
        extern "C" int count(void) { return turns; }
        extern "C" void cleanup_module(void) { stopped = true; if (worker) { worker->join(); delete worker; } }"#;
    for _ in 0..5 {
        drop(host.load(&built("worker", Language::Cxx, text, &[])).unwrap());
        call(&host, "start");
        until(&host, "count", 2);
        host.unload("worker").unwrap();
        assert!(host.quarantined().is_empty());
    }
}

/// The thread blocks every signal and sleeps, so that the sleeping thread is inspected.
fn a_std_thread_that_cannot_be_asked_is_the_modules() {
    let host = host();
    let text = r#"
        #include <atomic>
        #include <thread>
        #include <sys/syscall.h>
        #include <unistd.h>
        static int ends[2];
        static std::atomic<int> turns;
        static std::thread *worker;
        extern "C" int start(void)
        {
            if (pipe(ends))
                return 1;
            worker = new std::thread([] {
                unsigned long all = ~0UL;
                syscall(SYS_rt_sigprocmask, 0, &all, 0, 8L);
                char byte;
                turns = 1;
                turns += read(ends[0], &byte, 1) < 0;
            });
            return 0;
        }
        extern "C" int count(void) { return turns; }
        extern "C" void cleanup_module(void) { close(ends[1]); worker->join(); delete worker; close(ends[0]); }"#;
    drop(host.load(&built("deaf", Language::Cxx, text, &[])).unwrap());
    assert_eq!(call(&host, "start"), 0);
    until(&host, "count", 1);
    thread::sleep(Duration::from_millis(20));
    host.unload("deaf").unwrap();
    assert!(host.quarantined().is_empty());
}

fn a_std_thread_that_cannot_start_throws_as_ever() {
    let host = host();
    let text = r#"
        #include <system_error>
        #include <thread>
        extern "C" int fails(void)
        {
            try { std::thread thread([] {}); thread.join(); return 0; }
            catch (const std::system_error &error) { return error.code().value(); }
        }"#;
    let module = host.load(&built("fails", Language::Cxx, text, &[])).unwrap();
    let errno = without_address_space(|| call(&host, "fails"));
    assert_eq!(errno, u64::try_from(libc::EAGAIN).unwrap());
    assert_eq!(call(&host, "fails"), 0);
    module.unload().unwrap();
}

/// Runs something while no stack of a new thread can be mapped.
fn without_address_space<R>(run: impl FnOnce() -> R) -> R {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills in a variable of this function.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut before) }, 0);
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
    let tight = libc::rlimit { rlim_cur: pages * 4096 + (1 << 19), ..before };
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const tight) }, 0);
    let result = run();
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const before) }, 0);
    result
}

fn an_async_task_that_exit_waits_for_is_the_modules() {
    let host = host();
    let text = r#"
        #include <atomic>
        #include <future>
        static std::atomic<bool> stopped;
        static std::atomic<int> turns;
        static std::future<int> *task;
        extern "C" int start(void)
        {
            task = new std::future<int>(std::async(std::launch::async, [] { while (!stopped) ++turns; return 7; }));
            return 0;
        }
        extern "C" int count(void) { return turns; }
        extern "C" void cleanup_module(void) { stopped = true; task->get(); delete task; }"#;
    // `std::async` uses a thread-local variable of libstdc++'s.
    drop(host.load(&built("task", Language::Cxx, text, &[])).unwrap());
    call(&host, "start");
    until(&host, "count", 2);
    host.unload("task").unwrap();
}

fn threads_of_c11_and_of_tail_calls_are_the_modules() {
    let host = host();
    let text = "
        #include <pthread.h>
        #include <threads.h>
        #include <unistd.h>
        static volatile int stopped, turns;
        static thrd_t one;
        static pthread_t two;
        static int c11(void *nothing) { (void)nothing; while (!stopped) usleep(1000), turns++; return 5; }
        static void *posix(void *nothing) { (void)nothing; while (!stopped) usleep(1000), turns++; return 0; }
        int start_c11(void) { return thrd_create(&one, c11, 0); }
        int start_posix(void) { return pthread_create(&two, 0, posix, 0); }
        int count(void) { return turns; }
        int result;
        void cleanup_module(void) { stopped = 1; thrd_join(one, &result); pthread_join(two, 0); }";
    drop(host.load(&built("both", Language::C, text, &[])).unwrap());
    assert_eq!((call(&host, "start_c11"), call(&host, "start_posix")), (0, 0));
    until(&host, "count", 4);
    host.unload("both").unwrap();
    assert!(host.quarantined().is_empty());
}

fn a_thread_that_began_under_a_graph_trace_is_the_modules() {
    let host = host();
    let text = "
        #include <pthread.h>
        #include <unistd.h>
        static volatile int stopped, turns;
        static pthread_t thread;
        __attribute__((noinline)) void *first(void *nothing)
        {
            while (!stopped)
                usleep(1000), turns++;
            return nothing;
        }
        int start(void) { return pthread_create(&thread, 0, first, 0); }
        int count(void) { return turns; }
        void cleanup_module(void) { stopped = 1; pthread_join(thread, 0); }";
    let image = built("traced", Language::C, text, &["-fpatchable-function-entry=5"]);
    drop(host.load(&image).unwrap());
    let trace = host.trace_functions(&TraceOptions::new(Mode::Graph)).unwrap();
    assert_eq!(call(&host, "start"), 0);
    until(&host, "count", 2);
    drop(trace);
    // The function was entered under the trace, and its frame stays.
    host.unload("traced").unwrap();
    assert!(host.quarantined().is_empty());
}

fn a_thread_of_another_module_is_not() {
    let host = host();
    let text = "
        #include <unistd.h>
        static volatile int stopped;
        void *lent(void *nothing) { while (!stopped) usleep(1000); return nothing; }
        int stop(void) { stopped = 1; return 0; }";
    let lender = image_from_text("lender", text).named("lender");
    let user = "
        #include <pthread.h>
        static pthread_t thread;
        static void *(*taken)(void *);
        int take(void *(*function)(void *)) { taken = function; return 0; }
        int start(void) { volatile int failed = pthread_create(&thread, 0, taken, 0); return failed; }
        int join(void) { return pthread_join(thread, 0); }";
    let user = host.load(&image_from_text("user", user)).unwrap();
    drop(host.load(&lender).unwrap());
    let lent = host.look().into_iter().find_map(|(module, _)| module.symbol_info("lent")).unwrap().addr.get();
    // SAFETY: the function takes a pointer.
    unsafe { user.call("take", &[lent]) }.unwrap();
    assert_eq!(call(&host, "start"), 0);
    thread::sleep(Duration::from_millis(20));
    // The thread's first function belongs to the lender, and the user has created the thread.
    let UnloadError::Occupied { threads, .. } = host.unload("lender").unwrap_err() else { panic!("it was occupied") };
    assert!(matches!(&threads[0].why, Occupies::Inside(frame) if frame.starts_with("lent+0x")), "{threads:?}");
    call(&host, "stop");
    call(&host, "join");
    host.unload("lender").unwrap();
    user.unload().unwrap();
}

fn a_failure_to_learn_how_threads_begin_is_not_kept() {
    let host = host();
    drop(host.load(&image_from_text("one", "int one(void) { return 1; } void cleanup_module(void) {}")).unwrap());
    let crowd = Crowd::of(1, thread::yield_now);
    let refused = without_address_space(|| {
        assert!(matches!(thread_starts(), Err(StartsUnknown::NotCreated { .. })));
        host.unload("one").unwrap_err()
    });
    assert!(matches!(refused, UnloadError::NotSeen { .. }), "{refused}");
    assert!(refused.to_string().contains("cannot be created"), "{refused}");
    host.unload("one").unwrap();
    drop(crowd);
}

fn creators_among_many_threads() {
    let host = host();
    let text = "
        #include <pthread.h>
        #include <stdlib.h>
        static volatile int stopped, running;
        static pthread_t threads[16];
        static void *first(void *nothing)
        {
            __atomic_fetch_add(&running, 1, __ATOMIC_SEQ_CST);
            while (!stopped)
                ;
            return nothing;
        }
        int init_module(void)
        {
            for (int i = 0; i < 16; i++)
                if (pthread_create(&threads[i], 0, first, 0))
                    abort();
            return 0;
        }
        void cleanup_module(void) { stopped = 1; for (int i = 0; i < 16; i++) pthread_join(threads[i], 0); }";
    let image = image_from_text("many", text);
    let loads = Arc::new(AtomicU64::new(0));
    let (tell, told) = mpsc::channel();
    let coming_and_going = {
        let loads = loads.clone();
        thread::spawn(move || {
            while told.try_recv().is_err() {
                let loads = loads.clone();
                thread::spawn(move || loads.fetch_add(1, Ordering::Relaxed)).join().unwrap();
            }
        })
    };
    for _ in 0..30 {
        drop(host.load(&image).unwrap());
        // Sixteen busy threads have to get a processor first.
        host.unload_within("many", Duration::from_secs(60)).unwrap();
    }
    tell.send(()).unwrap();
    coming_and_going.join().unwrap();
    assert!(host.quarantined().is_empty() && loads.load(Ordering::Relaxed) > 0);
}
