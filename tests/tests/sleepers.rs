//! Threads that cannot be asked: they block every signal, wait for every signal, or sleep where no signal wakes them.
//! Such threads block nothing for ever, and they receive no signal that they could take for a signal of other code.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use modload::module::Occupies;
use modload::{Host, Module, UnloadError};
use modload_fixtures::{Compiler, LONG, Language, object_from_text};
use modload_tests::{Crowd, case, image_from_text, mask, run, until_in};
use modload_threads::frames::{StackWords, know_process, thread_starts, words};
use modload_threads::{DEFAULT_LIMIT, Sleeper, Tid, hold, hold_or_look, status};

fn main() -> ExitCode {
    run(&[
        case!(the_c_librarys_helpers_stop_nothing),
        case!(threads_that_block_all_signals_are_held),
        case!(threads_that_block_all_signals_by_system_call_stop_no_unload),
        case!(a_thread_that_waits_for_all_signals_is_handed_none),
        case!(a_reader_of_all_signals_is_handed_none),
        case!(a_look_before_each_signal_races_little).within_seconds(120 + rounds() / 1_000),
        case!(a_sleeper_in_the_module_is_named),
        case!(frames_below_an_alternate_stack_within_the_own_one_count),
        case!(frames_below_an_alternate_stack_elsewhere_count),
        case!(a_thread_in_vfork_counts_where_it_returns_to),
        case!(a_stack_that_cannot_be_walked_is_read),
        case!(what_is_handed_to_a_sleeper_is_seen).within_seconds(120),
        case!(force_leaves_a_sleeper_its_text),
    ])
}

fn host() -> Host {
    Host::builder().process_symbols().allow_forced_unload().build().unwrap()
}

/// A module without any thread in its code. The module is compiled once, because the end of a compiler is a signal,
/// too.
fn other(host: &Host) -> Module {
    static IMAGE: OnceLock<modload::Image<'static>> = OnceLock::new();
    let text = "int one(void) { return 1; } void cleanup_module(void) {}";
    host.load(IMAGE.get_or_init(|| image_from_text("other", text))).unwrap()
}

fn unload_others(host: &Host) {
    for _ in 0..20 {
        other(host).unload().unwrap();
    }
}

/// A module in C, without optimisation: each of its functions has a frame pointer.
fn slow(name: &str, text: &str) -> modload::Image<'static> {
    let object = object_from_text(name, Language::C, text, Compiler::Cc, &["-O0", "-fPIC"]).unwrap();
    // SAFETY: the texts are ours.
    unsafe { modload::Image::trusted(std::fs::read(object).unwrap()) }.named(name)
}

fn call(module: &Module, name: &str, argument: u64) -> u64 {
    // SAFETY: the texts below have functions that take an integer or a pointer, or nothing.
    unsafe { module.call(name, &[argument]) }.unwrap() & 0xffff_ffff
}

/// Starts a thread that blocks all signals by the system call itself, and then calls `run`.
fn deaf(name: &str, run: impl FnOnce() + Send + 'static) -> (thread::JoinHandle<()>, Tid) {
    let (tell, told) = mpsc::channel();
    let run = move || {
        mask(libc::SIG_SETMASK, u64::MAX);
        tell.send(Tid::current()).unwrap();
        run();
    };
    let thread = thread::Builder::new().name(name.into()).spawn(run).unwrap();
    (thread, told.recv().unwrap())
}

/// Creates a pipe. Returns its reading and its writing end.
fn pipe() -> (libc::c_int, libc::c_int) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    (ends[0], ends[1])
}

fn end(writing: libc::c_int) {
    // SAFETY: ours, and closed once.
    unsafe { libc::close(writing) };
}

fn the_c_librarys_helpers_stop_nothing() {
    let host = host();
    let text = "
        #include <aio.h>
        #include <signal.h>
        #include <time.h>
        #include <unistd.h>
        static int ends[2];
        static char byte;
        static struct aiocb block;
        static void expired(union sigval value) { (void)value; }
        int setup(void)
        {
            struct sigevent event = { .sigev_notify = SIGEV_THREAD };
            event.sigev_notify_function = expired;
            timer_t timer;
            if (timer_create(CLOCK_MONOTONIC, &event, &timer) || pipe(ends))
                return 1;
            block.aio_fildes = ends[0];
            block.aio_buf = &byte;
            block.aio_nbytes = 1;
            if (aio_read(&block))
                return 2;
            usleep(50000);
            return 0;
        }";
    let helped = host.load(&image_from_text("helped", text)).unwrap();
    assert_eq!(call(&helped, "setup", 0), 0);
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads >= 3, "{threads} threads: the helpers are there");
    unload_others(&host);
    assert_eq!(hold(DEFAULT_LIMIT).unwrap().count(), u64::try_from(threads - 1).unwrap());
}

fn threads_that_block_all_signals_are_held() {
    let (stop, tids) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
    let threads: Vec<_> = (0..3)
        .map(|number| {
            let (stop, tell) = (stop.clone(), tids.0.clone());
            thread::spawn(move || {
                let mut all = std::mem::MaybeUninit::uninit();
                // SAFETY: fills in the set.
                unsafe { libc::sigfillset(all.as_mut_ptr()) };
                // SAFETY: the call fills in the variable.
                unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
                tell.send(Tid::current()).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // One of the threads is busy.
                    if number != 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            })
        })
        .collect();
    assert_eq!(tids.1.iter().take(3).count(), 3);
    for _ in 0..100 {
        assert_eq!(hold(DEFAULT_LIMIT).unwrap().count(), 3);
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn threads_that_block_all_signals_by_system_call_stop_no_unload() {
    let host = host();
    let (reading, writing) = pipe();
    let mut threads = Vec::new();
    let mut sleeps = |name: &str, call: libc::c_long, run: Box<dyn FnOnce() + Send>| {
        let (thread, tid) = deaf(name, run);
        until_in(tid, call);
        threads.push((thread, tid));
    };
    sleeps(
        "reads",
        libc::SYS_read,
        Box::new(move || {
            // SAFETY: one byte of ours.
            unsafe { libc::read(reading, [0_u8; 1].as_mut_ptr().cast(), 1) };
        }),
    );
    sleeps(
        "polls",
        libc::SYS_poll,
        Box::new(move || {
            let mut one = libc::pollfd { fd: reading, events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor of ours.
            unsafe { libc::poll(&raw mut one, 1, -1) };
        }),
    );
    let (go, wait) = mpsc::channel::<()>();
    sleeps("waits", libc::SYS_futex, Box::new(move || assert!(wait.recv().is_err())));
    let before: Vec<_> = threads.iter().map(|(_, tid)| status(*tid).unwrap().unwrap().pending).collect();
    assert_eq!(before, [0; 3]);
    unload_others(&host);
    let after: Vec<_> = threads.iter().map(|(_, tid)| status(*tid).unwrap().unwrap().pending).collect();
    assert_eq!(after, [0; 3], "nothing was sent");
    // The error names the threads if they must be held.
    let refused = hold(Duration::from_millis(50)).unwrap_err().to_string();
    assert!(refused.contains("\"reads\" blocks signal") && refused.contains("\"waits\" blocks signal"), "{refused}");
    end(writing);
    drop(go);
    threads.into_iter().for_each(|(thread, _)| thread.join().unwrap());
    assert_eq!(hold(DEFAULT_LIMIT).unwrap().count(), 0);
}

/// Waits for all signals by the system call, up to the limit. Returns the signal that arrived, or 0.
fn wait_for_signal(limit: Duration) -> i32 {
    let all = u64::MAX;
    let limit = libc::timespec { tv_sec: limit.as_secs().try_into().unwrap(), tv_nsec: limit.subsec_nanos().into() };
    let nowhere = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the kernel reads a set and a time.
    let signal = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const all, nowhere, &raw const limit, 8) };
    i32::try_from(signal).unwrap().max(0)
}

/// Waits for all signals until [`found_in_its_wait`] sends one. However busy the machine is, the thread is found in a wait first.
fn first_wait() {
    assert_eq!(wait_for_signal(LONG), libc::SIGUSR1);
}

/// Inspects a thread that is in its [`first_wait`], and ends the wait.
fn found_in_its_wait(tid: Tid) {
    until_in(tid, libc::SYS_rt_sigtimedwait);
    assert!(hold_or_look(LONG).unwrap().sleepers().any(|sleeper| sleeper.tid() == tid));
    let process = std::process::id();
    // SAFETY: a signal to a thread of ours that waits for the signal.
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, process, tid.get(), libc::SIGUSR1) }, 0);
}

fn a_thread_that_waits_for_all_signals_is_handed_none() {
    let host = host();
    unload_others(&host);
    let stop = Arc::new(AtomicBool::new(false));
    let got = Arc::new(AtomicUsize::new(0));
    let (stops, count) = (stop.clone(), got.clone());
    let (thread, tid) = deaf("waiter", move || {
        first_wait();
        while !stops.load(Ordering::Relaxed) {
            count.fetch_add(usize::from(wait_for_signal(Duration::from_millis(200)) != 0), Ordering::Relaxed);
        }
    });
    found_in_its_wait(tid);
    unload_others(&host);
    let refused = hold(Duration::from_millis(20)).unwrap_err().to_string();
    assert!(
        refused.contains("\"waiter\" waits for signal") || refused.contains("\"waiter\" blocks signal"),
        "{refused}"
    );
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert_eq!(got.load(Ordering::Relaxed), 0);
}

fn a_reader_of_all_signals_is_handed_none() {
    let host = host();
    unload_others(&host);
    let got = Arc::new(AtomicUsize::new(0));
    let (stop, count) = (Arc::new(AtomicBool::new(false)), got.clone());
    let stops = stop.clone();
    let (thread, tid) = deaf("reader", move || {
        let all = u64::MAX;
        // SAFETY: the kernel reads a set of 64 signals.
        let descriptor = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const all, 8, 0) };
        let mut one = libc::pollfd { fd: i32::try_from(descriptor).unwrap(), events: libc::POLLIN, revents: 0 };
        while !stops.load(Ordering::Relaxed) {
            // SAFETY: one descriptor of ours.
            let ready = unsafe { libc::poll(&raw mut one, 1, 200) };
            count.fetch_add(usize::from(ready == 1), Ordering::Relaxed);
        }
    });
    until_in(tid, libc::SYS_poll);
    unload_others(&host);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert_eq!(got.load(Ordering::Relaxed), 0);
}

/// Returns the number of looks that the environment asks for, 1,000 by default.
fn rounds() -> u64 {
    std::env::var("MODLOAD_ROUNDS").ok().map_or(1_000, |rounds| rounds.parse().unwrap())
}

/// A thread that waits for all signals and runs between two waits receives no signal from inspections. If each thread
/// must reply, the thread is asked once it has run for some milliseconds of its own time, and may begin to wait between
/// the check and the signal: the test prints how often that happens. MODLOAD_ROUNDS sets the number of checks, for
/// example to a million.
fn a_look_before_each_signal_races_little() {
    let rounds = rounds();
    let (stop, handed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let turns = Arc::new(AtomicU64::new(0));
    let (stops, count, passes) = (stop.clone(), handed.clone(), turns.clone());
    let (thread, tid) = deaf("racer", move || {
        first_wait();
        mask(libc::SIG_SETMASK, 0);
        while !stops.load(Ordering::Relaxed) {
            count.fetch_add(u64::from(wait_for_signal(Duration::from_millis(1)) != 0), Ordering::Relaxed);
            passes.fetch_add(1, Ordering::Relaxed);
            (0..1_000).for_each(|_| std::hint::spin_loop());
        }
    });
    found_in_its_wait(tid);
    let looks = |rounds: u64| (0..rounds).filter(|_| hold_or_look(LONG).is_err()).count();
    let missed = looks(rounds);
    let by_looks = handed.load(Ordering::Relaxed);
    let held = (0..10).filter(|_| hold(DEFAULT_LIMIT).is_ok()).count();
    let by_holds = handed.load(Ordering::Relaxed) - by_looks;
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    eprintln!(
        "{rounds} looks beside {} waits: {by_looks} signals were handed over; {by_holds} by {held} holds",
        turns.load(Ordering::Relaxed)
    );
    assert_eq!((missed, by_looks), (0, 0));
}

fn occupied(refused: UnloadError) -> Vec<modload::module::Occupant> {
    let UnloadError::Occupied { threads, .. } = refused else { panic!("{refused}") };
    threads
}

/// The address of a function, for a thread that holds no reference.
fn function(host: &Host, name: &str) -> extern "C" fn(u64) -> u64 {
    let at = host.look().into_iter().find_map(|(module, _)| module.symbol_info(name)).unwrap().addr.get();
    // SAFETY: the texts have functions that take an integer, or nothing.
    unsafe { std::mem::transmute(usize::try_from(at).unwrap()) }
}

fn a_sleeper_in_the_module_is_named() {
    let host = host();
    let text = "
        #include <unistd.h>
        long sleeps(long end) { char byte; return read((int)end, &byte, 1) + 1; }";
    drop(host.load(&image_from_text("inside", text)).unwrap());
    let (reading, writing) = pipe();
    let sleeps = function(&host, "sleeps");
    let (thread, tid) = deaf("sleeper", move || {
        sleeps(u64::try_from(reading).unwrap());
    });
    until_in(tid, libc::SYS_read);
    let threads = occupied(host.unload("inside").unwrap_err());
    assert_eq!(threads.len(), 1);
    assert_eq!(threads[0].thread, tid.get());
    assert!(matches!(&threads[0].why, Occupies::Inside(frame) if frame.starts_with("sleeps+0x")), "{:?}", threads[0]);
    end(writing);
    thread.join().unwrap();
    host.unload("inside").unwrap();
}

/// A thread in a signal's handler, whose alternate stack is `ours`. The handler sleeps in `read`, with every signal
/// blocked. The signal has interrupted a function of the module.
const HANDLED: &str = "
    #define _GNU_SOURCE
    #include <signal.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int end;
    static void handler(int signal) { (void)signal; char byte; while (read(end, &byte, 1) < 0) ; }
    struct kernel_action { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask; };
    __attribute__((noinline)) static int spin(volatile int *word) { return *word; }
    __attribute__((noinline)) int on(char *stack, long size, int reading)
    {
        stack_t alternate = { .ss_sp = stack, .ss_size = size };
        struct kernel_action action;
        end = reading;
        sigaltstack(&alternate, 0);
        struct sigaction wanted = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
        sigaction(SIGUSR2, &wanted, 0);
        syscall(SYS_rt_sigaction, SIGUSR2, 0, &action, 8L);
        action.mask = ~0UL;
        syscall(SYS_rt_sigaction, SIGUSR2, &action, 0, 8L);
        volatile int word = 0;
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2);
        return spin(&word);
    }
    int within(long reading)
    {
        char stack[65536] __attribute__((aligned(16)));
        return on(stack, sizeof stack, (int)reading);
    }
    static char elsewhere[65536] __attribute__((aligned(16)));
    int apart(long reading) { return on(elsewhere, sizeof elsewhere, (int)reading); }";

fn alternate_stack(entry: &'static str) {
    let host = host();
    drop(host.load(&image_from_text("handled", HANDLED)).unwrap());
    let (reading, writing) = pipe();
    let enters = function(&host, entry);
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(Tid::current()).unwrap();
        enters(u64::try_from(reading).unwrap())
    });
    let tid = told.recv().unwrap();
    until_in(tid, libc::SYS_read);
    let threads = occupied(host.unload("handled").unwrap_err());
    assert_eq!((threads.len(), threads[0].thread), (1, tid.get()));
    // The thread does not delay another module's unload.
    unload_others(&host);
    end(writing);
    thread.join().unwrap();
    host.unload("handled").unwrap();
}

fn frames_below_an_alternate_stack_within_the_own_one_count() {
    alternate_stack("within");
    // The same with the words alone, which lie below the stack pointer.
    words_of_an_alternate_stack();
}

/// A signal's handler of this program on an alternate stack within the thread's own stack. The handler sleeps in `read`
/// on this descriptor.
static END: AtomicUsize = AtomicUsize::new(0);

extern "C" fn sleeps_in_handler(_: libc::c_int) {
    let end = i32::try_from(END.load(Ordering::Relaxed)).unwrap();
    // SAFETY: one byte of ours.
    unsafe { libc::read(end, [0_u8; 1].as_mut_ptr().cast(), 1) };
}

/// The code that a signal has interrupted is found among the words below the stack pointer.
fn words_of_an_alternate_stack() {
    know_process().unwrap();
    thread_starts().unwrap();
    let (reading, writing) = pipe();
    END.store(usize::try_from(reading).unwrap(), Ordering::Relaxed);
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let mut array = [0_u8; 1 << 16];
        let stack = libc::stack_t { ss_sp: array.as_mut_ptr().cast(), ss_flags: 0, ss_size: array.len() };
        // SAFETY: the array outlives the handler, which runs below.
        assert_eq!(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) }, 0);
        // SAFETY: an action is integers.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        #[expect(clippy::as_conversions, reason = "sigaction takes the handler's address as an integer")]
        let handler = sleeps_in_handler as extern "C" fn(libc::c_int) as usize;
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the handler has its signature.
        assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) }, 0);
        mask(libc::SIG_SETMASK, !modload_tests::bit(libc::SIGUSR1));
        tell.send(Tid::current()).unwrap();
        raised();
        std::hint::black_box(&mut array);
    });
    let tid = told.recv().unwrap();
    until_in(tid, libc::SYS_read);
    #[expect(clippy::as_conversions, reason = "the address of a function")]
    let at = u64::try_from(raised as fn() as usize).unwrap();
    let held = hold_or_look(DEFAULT_LIMIT).unwrap();
    let sleeper: Sleeper = held.sleepers().find(|sleeper| sleeper.tid() == tid).unwrap();
    let found = words(&sleeper, |word| (at..at + 0x80).contains(&word));
    let none = words(&sleeper, |word| word == 0x1234_5678_9abc_def0);
    drop(held);
    assert!(matches!(found, StackWords::Hold(_)), "{found:?}");
    assert_eq!(none, StackWords::Free { has_begun: true });
    end(writing);
    thread.join().unwrap();
}

#[inline(never)]
fn raised() {
    // SAFETY: a signal to this thread, which handles the signal.
    unsafe { libc::raise(libc::SIGUSR1) };
    std::hint::black_box(());
}

fn frames_below_an_alternate_stack_elsewhere_count() {
    alternate_stack("apart");
}

fn a_thread_in_vfork_counts_where_it_returns_to() {
    let host = host();
    let text = "
        #include <sys/wait.h>
        #include <time.h>
        #include <unistd.h>
        int forks(long unused)
        {
            (void)unused;
            int status;
            pid_t child = vfork();
            if (!child) {
                struct timespec while_ = { .tv_sec = 2 };
                nanosleep(&while_, 0);
                _exit(3);
            }
            return waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
        }";
    drop(host.load(&image_from_text("forks", text)).unwrap());
    drop(other(&host));
    let forks = function(&host, "forks");
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(Tid::current()).unwrap();
        forks(0) & 0xffff_ffff
    });
    let tid = told.recv().unwrap();
    while status(tid).unwrap().unwrap().state != modload_threads::ThreadState::Uninterruptible {
        thread::yield_now();
    }
    let threads = occupied(host.unload("forks").unwrap_err());
    assert_eq!((threads.len(), threads[0].thread), (1, tid.get()));
    assert!(matches!(&threads[0].why, Occupies::Inside(frame) if frame.starts_with("forks+0x")), "{:?}", threads[0]);
    host.unload("other").unwrap();
    assert!(!thread.is_finished(), "the child sleeps for two seconds");
    assert_eq!(thread.join().unwrap(), 3);
    host.unload("forks").unwrap();
}

/// The system call without a function of the C library, which would save registers.
const POINTED: &str = "
    long sleeps(long end)
    {
        char byte;
        register long number __asm__(\"rax\") = 0;
        register long descriptor __asm__(\"rdi\") = end;
        register char *into __asm__(\"rsi\") = &byte;
        register long size __asm__(\"rdx\") = 1;
        __asm__ volatile(\"syscall\" : \"+r\"(number) : \"r\"(descriptor), \"r\"(into), \"r\"(size) : \"rcx\", \"r11\", \"memory\");
        return number;
    }";

fn a_stack_that_cannot_be_walked_is_read() {
    let host = host();
    // The function of one module sleeps; below the function there are only frames of this program and of the C library.
    drop(host.load(&slow("pointed", POINTED)).unwrap());
    let (reading, writing) = pipe();
    let sleeps = function(&host, "sleeps");
    let (thread, tid) = deaf("pointed", move || {
        sleeps(u64::try_from(reading).unwrap());
    });
    until_in(tid, libc::SYS_read);
    unload_others(&host);
    let threads = occupied(host.unload("pointed").unwrap_err());
    assert_eq!((threads.len(), threads[0].thread), (1, tid.get()));
    // A function that calls the sleeping one by a pointer is found by the words of the stack.
    let text = "long through(long (*function)(long), long end) { return function(end) + 1; }";
    drop(host.load(&slow("below", text)).unwrap());
    end(writing);
    thread.join().unwrap();
    let (reading, writing) = pipe();
    let at = host.look().into_iter().find_map(|(module, _)| module.symbol_info("through")).unwrap().addr.get();
    // SAFETY: the text above defines the function.
    let through: extern "C" fn(extern "C" fn(u64) -> u64, u64) -> u64 =
        unsafe { std::mem::transmute(usize::try_from(at).unwrap()) };
    let (thread, tid) = deaf("through", move || {
        through(sleeps, u64::try_from(reading).unwrap());
    });
    until_in(tid, libc::SYS_read);
    let threads = occupied(host.unload("below").unwrap_err());
    assert_eq!((threads.len(), threads[0].thread), (1, tid.get()));
    let Occupies::Asleep { call, word, .. } = &threads[0].why else { panic!("{:?}", threads[0]) };
    assert_eq!(*call, Some(libc::SYS_read));
    assert!(word.as_ref().is_some_and(|word| word.ends_with(" [below]")), "{word:?}");
    let said = threads[0].to_string();
    assert!(said.contains("cannot be asked, sleeps in system call 0, and the frame of"), "{said}");
    end(writing);
    thread.join().unwrap();
    host.unload("below").unwrap();
    host.unload("pointed").unwrap();
}

/// Two threads pass a function of the module to each other, so that at each moment one of them is in the function. The
/// thread that is inspected may have left the function, and the thread that was found asleep earlier may have entered
/// the function since. One of the threads blocks every signal.
fn what_is_handed_to_a_sleeper_is_seen() {
    let host = host();
    let text = "
        #include <semaphore.h>
        struct shared { sem_t woken[2]; volatile long inside[2]; volatile long stopped; };
        long stay(struct shared *shared, long me)
        {
            shared->inside[me] = 1;
            while (shared->inside[1 - me])
                if (shared->stopped)
                    break;
            sem_post(&shared->woken[1 - me]);
            while (!shared->inside[1 - me])
                if (shared->stopped)
                    break;
            shared->inside[me] = 0;
            return 0;
        }";
    drop(host.load(&image_from_text("handed", text)).unwrap());
    let at = host.look().into_iter().find_map(|(module, _)| module.symbol_info("stay")).unwrap().addr.get();
    // SAFETY: the text above defines the function.
    let stay: extern "C" fn(*const Shared, u64) -> u64 = unsafe { std::mem::transmute(usize::try_from(at).unwrap()) };
    #[repr(C)]
    struct Shared {
        woken: [std::cell::UnsafeCell<libc::sem_t>; 2],
        inside: [AtomicU64; 2],
        stopped: AtomicU64,
    }
    // SAFETY: a semaphore is for several threads.
    unsafe impl Sync for Shared {}
    // SAFETY: integers.
    let shared: &'static Shared = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    for semaphore in &shared.woken {
        // SAFETY: the value is never freed.
        assert_eq!(unsafe { libc::sem_init(semaphore.get(), 0, 0) }, 0);
    }
    let turns = Arc::new(AtomicU64::new(0));
    let body = |me: usize| {
        let turns = turns.clone();
        move || {
            while shared.stopped.load(Ordering::Relaxed) == 0 {
                // SAFETY: the value is never freed.
                if unsafe { libc::sem_wait(shared.woken[me].get()) } == 0 {
                    stay(shared, u64::try_from(me).unwrap());
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    let asked = thread::spawn(body(0));
    let (unasked, _) = deaf("unasked", body(1));
    // SAFETY: the value is never freed.
    unsafe { libc::sem_post(shared.woken[0].get()) };
    while turns.load(Ordering::Relaxed) < 10 {
        thread::yield_now();
    }
    let (begun, mut refused) = (Instant::now(), 0_u64);
    while begun.elapsed() < Duration::from_secs(10) {
        let error = host.unload("handed").unwrap_err();
        assert!(matches!(error, UnloadError::Occupied { .. } | UnloadError::NotSeen { .. }), "{error}");
        refused += 1;
    }
    eprintln!("{} turns beside {refused} refused unloads", turns.load(Ordering::Relaxed));
    shared.stopped.store(1, Ordering::Relaxed);
    for semaphore in &shared.woken {
        // SAFETY: the value is never freed.
        unsafe { libc::sem_post(semaphore.get()) };
    }
    asked.join().unwrap();
    unasked.join().unwrap();
    host.unload("handed").unwrap();
}

fn force_leaves_a_sleeper_its_text() {
    let host = host();
    let text = "
        #include <unistd.h>
        long sleeps(long end) { char byte; return read((int)end, &byte, 1) + 41; }";
    drop(host.load(&image_from_text("forced", text)).unwrap());
    let (reading, writing) = pipe();
    let sleeps = function(&host, "sleeps");
    let _crowd = Crowd::of(1, thread::yield_now);
    let result = Arc::new(AtomicU64::new(0));
    let told = result.clone();
    let (thread, tid) = deaf("forced", move || {
        told.store(sleeps(u64::try_from(reading).unwrap()), Ordering::Relaxed);
    });
    until_in(tid, libc::SYS_read);
    occupied(host.unload("forced").unwrap_err());
    host.unload_by_force("forced").unwrap();
    assert_eq!(host.modules(), []);
    assert_eq!(host.quarantined().iter().map(|module| module.name().to_owned()).collect::<Vec<_>>(), ["forced"]);
    // SAFETY: one byte of ours.
    unsafe { libc::write(writing, [0_u8; 1].as_ptr().cast(), 1) };
    thread.join().unwrap();
    assert_eq!(result.load(Ordering::Relaxed), 42, "its code was there");
    assert_eq!(host.sweep(), ["forced"]);
}
