//! A module's text is freed when no thread is in the text: errors name the threads that are inside, and text that
//! cannot be freed yet is kept.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use modload::module::Occupies;
use modload::timeline::EventKind;
use modload::{Host, Module, State, UnloadError, WeakHost};
use modload_tests::{LONG, block, case, image_from_text, run, until};
use modload_threads::{Tid, signal, status};

fn main() -> ExitCode {
    run(&[
        case!(who_is_in_a_function_is_named),
        case!(who_will_return_into_a_function_is_named),
        case!(a_function_cannot_unload_its_own_module),
        case!(a_module_that_joins_its_thread_goes),
        case!(a_module_that_leaves_its_thread_is_quarantined),
        case!(what_a_host_leaves_is_freed_by_another),
        case!(a_thread_that_has_not_begun_is_waited_for),
        case!(what_is_quarantined_keeps_what_it_uses),
        case!(a_host_may_be_promised_that_nobody_is_left),
        case!(who_cannot_be_looked_at_is_named),
        case!(who_cannot_be_walked_through_is_named),
        case!(an_unload_waits_for_who_is_inside),
        case!(a_process_of_one_thread_needs_no_signal),
        case!(unloads_next_to_threads_that_come_and_go),
    ])
}

/// `spin` runs until `stop` is called; `sleeps` waits in the C library. `own` has a thread of the module, which `exit`
/// joins if `joins` has been called.
const SOURCE: &str = r#"
#include <pthread.h>
#include <unistd.h>

static volatile int stopped;
static int joined = 1;
static pthread_t thread;
static int has_thread;
static volatile int turns;

void stop(void) { stopped = 1; }
int spin(void) { while (!stopped) turns++; return turns != 0; }
int sleeps(int end) { char byte; turns++; return (int)read(end, &byte, 1); }

static void *own(void *nothing)
{
	(void)nothing;
	while (!stopped)
		usleep(1000), turns++;
	return 0;
}

int start(int joins)
{
	joined = joins;
	has_thread = 1;
	return pthread_create(&thread, 0, own, 0);
}

int count(void) { return turns; }
volatile int *turns_at(void) { return &turns; }
volatile int *stopped_at(void) { return &stopped; }

void cleanup_module(void)
{
	if (has_thread && joined) {
		stopped = 1;
		pthread_join(thread, 0);
	}
}

int host_unload(void);
int leave(void) { return host_unload() + 1; }

/* Its stack is not where its row says. */
__asm__(".globl lost\n.type lost, @function\nlost:\n.cfi_startproc\n.cfi_undefined rbx\n.cfi_def_cfa rbx, 16\n"
	"movl $1, 4(%rdi)\nmovl $0, %eax\n1: cmpl $0, (%rdi)\nje 1b\nret\n.cfi_endproc\n.size lost, . - lost\n");
"#;

fn host() -> Host {
    Host::builder().process_symbols().export("host_unload", unload_from_within_pointer()).build().unwrap()
}

#[expect(clippy::as_conversions, reason = "functions become pointers by a cast alone")]
fn unload_from_within_pointer() -> *const () {
    unload_from_within as *const ()
}

static HOST: Mutex<Option<WeakHost>> = Mutex::new(None);
static SAID: Mutex<String> = Mutex::new(String::new());

extern "C" fn unload_from_within() -> i32 {
    let host = HOST.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap();
    let refused = host.upgrade().unwrap().unload("inside").unwrap_err();
    *SAID.lock().unwrap_or_else(PoisonError::into_inner) = refused.to_string();
    41
}

/// Loads the module, and returns the addresses of its functions without a reference to the module, like a C program
/// that has asked for an address.
fn loaded(host: &Host) -> (Module, impl Fn(&str) -> usize + use<>) {
    let module = host.load(&image_from_text("inside", SOURCE)).unwrap();
    let info = host.look().into_iter().next().unwrap().0;
    let at = move |name: &str| usize::try_from(info.symbol_info(name).unwrap().addr.get()).unwrap();
    (module, at)
}

/// Calls `int f(int)` at an address.
fn call(at: usize, argument: i32) -> i32 {
    // SAFETY: the texts above have such functions, or such as ignore the argument.
    let function: extern "C" fn(i32) -> i32 = unsafe { std::mem::transmute(at) };
    function(argument)
}

fn variable(at: usize) -> &'static AtomicU32 {
    // SAFETY: `volatile int *f(void)`.
    let function: extern "C" fn() -> *mut u32 = unsafe { std::mem::transmute(at) };
    // SAFETY: an int of the module, which stays as long as a thread is in its text.
    unsafe { AtomicU32::from_ptr(function()) }
}

/// Returns whether a number of the module increases.
fn turning(turns: usize) -> impl Fn(Tid) -> bool {
    let (turns, before) = (variable(turns), variable(turns).load(Ordering::Relaxed));
    move |_| turns.load(Ordering::Relaxed) != before
}

fn occupants(refused: UnloadError) -> Vec<(i32, String, String)> {
    let UnloadError::Occupied { module, threads } = refused else { unreachable!("{refused}") };
    assert_eq!(module, "inside");
    let one = |occupant: modload::module::Occupant| {
        let why = match occupant.why {
            Occupies::Inside(frame) => frame,
            other => format!("{other:?}"),
        };
        (occupant.thread, occupant.name, why)
    };
    threads.into_iter().map(one).collect()
}

/// A thread of the host in a function of the module, and its id. `is_there` returns whether the thread has reached the
/// function.
fn enter(
    name: &str,
    is_there: impl Fn(Tid) -> bool,
    run: impl FnOnce() -> i32 + Send + 'static,
) -> (thread::JoinHandle<i32>, Tid) {
    let (tell, told) = mpsc::channel();
    let run = move || {
        tell.send(Tid::current()).unwrap();
        run()
    };
    let thread = thread::Builder::new().name(name.into()).spawn(run).unwrap();
    let tid = told.recv().unwrap();
    until("the thread is there", || is_there(tid));
    (thread, tid)
}

fn who_is_in_a_function_is_named() {
    let host = host();
    let (module, at) = loaded(&host);
    let recording = host.record();
    let (spin, stop) = (at("spin"), at("stop"));
    let (thread, tid) = enter("spinner", turning(at("turns_at")), move || call(spin, 0));
    let refused = module.unload().unwrap_err();
    let said = refused.to_string();
    assert!(
        said.starts_with(&format!("inside: its code is not left: thread {tid} \"spinner\" is in spin+0x")),
        "{said}"
    );
    let found = occupants(refused);
    assert_eq!((found.len(), found[0].0, found[0].1.as_str()), (1, tid.get(), "spinner"));
    assert!(found[0].2.starts_with("spin+0x") && found[0].2.ends_with(" [inside]"), "{found:?}");
    // As without any attempt.
    assert_eq!(host.modules(), [("inside".into(), State::Live)]);
    assert!(recording.so_far().events.is_empty(), "{}", recording.so_far());
    let module = host.module("inside").unwrap();
    call(stop, 0);
    assert_eq!(thread.join().unwrap(), 1);
    module.unload().unwrap();
    assert!(host.quarantined().is_empty());
}

fn who_will_return_into_a_function_is_named() {
    let host = host();
    let (module, at) = loaded(&host);
    let mut ends = [0; 2];
    // SAFETY: pipe writes two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let sleeps = at("sleeps");
    let (thread, tid) = enter("sleeper", turning(at("turns_at")), move || call(sleeps, ends[0]) + 1);
    let found = occupants(module.unload().unwrap_err());
    assert_eq!((found.len(), found[0].0), (1, tid.get()));
    assert!(found[0].2.starts_with("sleeps+0x"), "{found:?}");
    // SAFETY: one byte.
    assert_eq!(unsafe { libc::write(ends[1], c"x".as_ptr().cast(), 1) }, 1);
    assert_eq!(thread.join().unwrap(), 2, "it was not interrupted for good");
    host.unload("inside").unwrap();
}

fn a_function_cannot_unload_its_own_module() {
    let host = host();
    let (module, at) = loaded(&host);
    drop(module);
    *HOST.lock().unwrap() = Some(host.downgrade());
    assert_eq!(call(at("leave"), 0), 42, "it has returned into the module");
    let said = std::mem::take(&mut *SAID.lock().unwrap());
    assert!(said.contains(&format!("thread {} ", Tid::current())) && said.contains(" is in leave+0x"), "{said}");
    host.unload("inside").unwrap();
}

fn a_module_that_joins_its_thread_goes() {
    let host = host();
    let before = host.memory();
    let (module, at) = loaded(&host);
    assert_eq!(call(at("start"), 1), 0);
    let recording = host.record();
    module.unload().unwrap();
    assert!(matches!(recording.so_far().events.last().unwrap().kind, EventKind::Freed));
    assert_eq!(host.memory(), before);
}

fn a_module_that_leaves_its_thread_is_quarantined() {
    let host = host();
    let before = host.memory();
    let (module, at) = loaded(&host);
    let (turns, stopped) = (variable(at("turns_at")), variable(at("stopped_at")));
    assert_eq!(call(at("start"), 0), 0);
    // Before the first instruction of the thread, no stack shows the module.
    while turns.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    let recording = host.record();
    module.unload().unwrap();
    let timeline = recording.so_far();
    let last = &timeline.events.last().unwrap().kind;
    assert!(matches!(last, EventKind::Quarantined { threads: 1 }), "{timeline}");
    assert!(timeline.to_string().contains("gone, but thread "), "{timeline}");
    assert!(host.modules().is_empty() && host.quarantined()[0].name() == "inside");
    // The thread continues, and the module's name is free. Loads and unloads of other modules do not free the memory.
    for _ in 0..20 {
        let seen = turns.load(Ordering::Relaxed);
        host.load(&image_from_text("inside", SOURCE)).unwrap().unload().unwrap();
        while turns.load(Ordering::Relaxed) == seen {
            thread::yield_now();
        }
    }
    assert!(host.sweep().is_empty() && host.quarantined().len() == 1);
    stopped.store(1, Ordering::Relaxed);
    until("it is freed", || host.sweep() == ["inside"]);
    assert!(matches!(recording.so_far().events.last().unwrap().kind, EventKind::Freed));
    assert_eq!(host.memory(), before);
}

fn what_a_host_leaves_is_freed_by_another() {
    let first = host();
    let (module, at) = loaded(&first);
    let (turns, stopped) = (variable(at("turns_at")), variable(at("stopped_at")));
    assert_eq!(call(at("start"), 0), 0);
    module.unload().unwrap();
    drop((at, first));
    let second = host();
    assert!(second.quarantined().is_empty(), "it was never its own");
    let seen = turns.load(Ordering::Relaxed);
    while turns.load(Ordering::Relaxed) == seen {
        thread::yield_now();
    }
    stopped.store(1, Ordering::Relaxed);
    until("it is freed", || second.sweep() == ["inside"]);
}

static GO_ON: AtomicU32 = AtomicU32::new(1);
static ENDED: AtomicU32 = AtomicU32::new(0);

/// The module's `exit` starts a thread, and does not wait for it.
const LATE: &str = r#"
#include <pthread.h>
extern volatile int *host_go_on, *host_ended;
int base(void);
static void *late(void *nothing)
{
	while (*host_go_on)
		;
	__atomic_add_fetch(host_ended, CALL_BASE, __ATOMIC_SEQ_CST);
	return nothing;
}
void cleanup_module(void) { pthread_t thread; pthread_create(&thread, 0, late, 0); pthread_detach(thread); }
"#;

fn late_host() -> Host {
    static POINTERS: [&AtomicU32; 2] = [&GO_ON, &ENDED];
    let builder = Host::builder().process_symbols().export_globals();
    builder.export("host_go_on", &raw const POINTERS[0]).export("host_ended", &raw const POINTERS[1]).build().unwrap()
}

fn sweep_until_freed(host: &Host) {
    until("all is freed", || {
        host.sweep();
        host.quarantined().is_empty()
    });
}

fn a_thread_that_has_not_begun_is_waited_for() {
    const ROUNDS: u32 = 100;
    let host = late_host();
    let late = image_from_text("late", &LATE.replace("CALL_BASE", "1"));
    let stop = AtomicU32::new(0);
    thread::scope(|scope| {
        // These threads keep a new thread from its processor.
        for _ in 0..3 {
            scope.spawn(|| while stop.load(Ordering::Relaxed) == 0 {});
        }
        for _ in 0..ROUNDS {
            GO_ON.store(1, Ordering::SeqCst);
            host.load(&late).unwrap().unload().unwrap();
            assert_eq!(host.quarantined().len(), 1, "it was freed under a thread that had not begun");
            GO_ON.store(0, Ordering::SeqCst);
            sweep_until_freed(&host);
        }
        stop.store(1, Ordering::Relaxed);
    });
    assert_eq!(ENDED.load(Ordering::SeqCst), ROUNDS);
}

fn what_is_quarantined_keeps_what_it_uses() {
    let host = late_host();
    let base = host.load(&image_from_text("base", "int base(void) { return 1; }")).unwrap();
    host.load(&image_from_text("late", &LATE.replace("CALL_BASE", "base()"))).unwrap().unload().unwrap();
    assert_eq!(host.quarantined().len(), 1);
    let refused = base.unload().unwrap_err();
    assert!(matches!(refused, UnloadError::InUse { references: 1, .. }), "{refused}");
    GO_ON.store(0, Ordering::SeqCst);
    sweep_until_freed(&host);
    assert_eq!(ENDED.load(Ordering::SeqCst), 1, "its thread has called what it uses");
    host.unload("base").unwrap();
}

fn a_host_may_be_promised_that_nobody_is_left() {
    // SAFETY: only this thread calls the module of this test.
    let host = unsafe { Host::builder().unload_unseen() }.build().unwrap();
    let (end, wait) = mpsc::channel::<()>();
    let other = thread::spawn(move || wait.recv().is_err());
    let signals = || modload_threads::counts();
    let before = signals();
    host.load(&image_from_text("plain", "int base(void) { return 1; }")).unwrap().unload().unwrap();
    assert_eq!(signals(), before);
    drop(end);
    assert!(other.join().unwrap());
}

fn who_cannot_be_looked_at_is_named() {
    let host = host();
    let (module, _at) = loaded(&host);
    // The signal is chosen at the first use.
    drop(modload_threads::hold(modload_threads::DEFAULT_LIMIT).unwrap());
    let number = signal().unwrap();
    let (end, wait) = mpsc::channel::<()>();
    let (thread, tid) = enter(
        "stubborn",
        |tid| status(tid).unwrap().unwrap().blocks(number),
        move || {
            let _ = block(number);
            // The thread never sleeps.
            while wait.try_recv() == Err(mpsc::TryRecvError::Empty) {}
            1
        },
    );
    let refused = module.unload().unwrap_err();
    let UnloadError::NotSeen { module, why } = &refused else { unreachable!("{refused}") };
    assert_eq!(module, "inside");
    assert!(why.ends_with(&format!("thread {tid} \"stubborn\" blocks signal {number}")), "{why}");
    drop(end);
    assert_eq!(thread.join().unwrap(), 1);
    host.unload("inside").unwrap();
}

/// A thread in another module, in a function with useless rows.
fn who_cannot_be_walked_through_is_named() {
    let host = host();
    let (module, at) = loaded(&host);
    let other = host.load(&image_from_text("other", "int one(void) { return 1; }")).unwrap();
    let flags: &'static [AtomicU32; 2] = Box::leak(Box::default());
    let [flag, there] = flags;
    let lost = at("lost");
    let is_there = |_| there.load(Ordering::Relaxed) == 1;
    let (thread, tid) = enter("lost", is_there, move || {
        // SAFETY: the function writes the second flag, and reads the first flag until that flag is not 0.
        let function: extern "C" fn(*const AtomicU32) -> i32 = unsafe { std::mem::transmute(lost) };
        function(flags.as_ptr())
    });
    let refused = other.unload().unwrap_err();
    let said = refused.to_string();
    assert!(said.starts_with(&format!("other: its code is not left: thread {tid} \"lost\" may be: ")), "{said}");
    flag.store(1, Ordering::Relaxed);
    thread.join().unwrap();
    host.unload("other").unwrap();
    module.unload().unwrap();
}

fn an_unload_waits_for_who_is_inside() {
    let host = host();
    let (module, at) = loaded(&host);
    drop(module);
    let (spin, stop) = (at("spin"), at("stop"));
    let (thread, _) = enter("spinner", turning(at("turns_at")), move || call(spin, 0));
    let begun = Instant::now();
    let short = host.unload_within("inside", Duration::from_millis(50)).unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert_eq!(occupants(short).len(), 1);
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        call(stop, 0)
    });
    host.unload_within("inside", LONG).unwrap();
    stopper.join().unwrap();
    assert_eq!(thread.join().unwrap(), 1);
}

fn a_process_of_one_thread_needs_no_signal() {
    let host = host();
    let (module, _at) = loaded(&host);
    module.unload().unwrap();
    assert!(host.quarantined().is_empty());
    let block_all = block(libc::SIGUSR1);
    assert!(!block_all);
    // No other thread existed that could get a signal, and this thread sends itself none.
    assert_eq!(modload_threads::counts(), modload_threads::SignalCounts::default());
}

fn unloads_next_to_threads_that_come_and_go() {
    let host = host();
    let stop: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
    let spawners: Vec<_> = (0..3)
        .map(|_| {
            thread::spawn(move || {
                while stop.load(Ordering::Relaxed) == 0 {
                    thread::spawn(|| std::hint::black_box(vec![0_u8; 3000])).join().unwrap();
                }
            })
        })
        .collect();
    let image = image_from_text("inside", SOURCE);
    for _ in 0..300 {
        let module = host.load(&image).unwrap();
        let start = usize::try_from(module.symbol_info("start").unwrap().addr.get()).unwrap();
        assert_eq!(call(start, 1), 0);
        module.unload().unwrap();
    }
    stop.store(1, Ordering::Relaxed);
    spawners.into_iter().for_each(|thread| thread.join().unwrap());
    host.sweep();
    assert!(host.quarantined().is_empty());
}
