//! Measures the call of a patched function: after a transition, during a transition, and with stacked patches. It is
//! compared with a plain call and with a handler that chooses the function, as in the kernel. Also measures the time of
//! transitions, compared with signalling all threads and waiting for their answers.
//!
//! `cargo bench` measures and prints. With `--check` it fails if a result is far from its target. `--transitions` skips
//! the calls, for profiling. `cargo test` runs each measurement once.

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use modload::patch::{Callbacks, FuncSpec, ObjectSpec, PatchSpec};
use modload::text::{Addr, TrapMask};
use modload::trace::{Call, Redirect, Redirecting};
use modload::{Host, Module};
use modload_tests::image_from_text;
use modload_threads::{Interrupted, Probe, hold, run_in_each};

const TEXT: &str = "
#define LEAF(name, nops, more) \\
    __attribute__((noinline, aligned(64), patchable_function_entry(nops))) int name(int a) { return a + 1 + more; }
LEAF(plain, 0, 0)
LEAF(patched, 5, 0)
LEAF(handled, 5, 0)
LEAF(new0, 0, 0) LEAF(new1, 0, 0) LEAF(new2, 0, 0) LEAF(new3, 0, 0) LEAF(new4, 0, 0)
static volatile int go;
void release(void) { go = 1; }
__attribute__((noinline, patchable_function_entry(5))) int waits(int a)
{
    while (!go)
        __builtin_ia32_pause();
    __asm__ volatile(\"\");
    return a;
}
int new_waits(int a) { return a; }
__attribute__((aligned(64))) int run(int (*f)(int), long n)
{
    int a = 0;
    for (long i = 0; i < n; i++)
        a = f(a);
    return a;
}
";

type Leaf = extern "C" fn(i32) -> i32;
type Run = extern "C" fn(Leaf, i64) -> i32;

fn symbol<F: Copy>(module: &Module, name: &str) -> Result<F, Box<dyn Error>> {
    // SAFETY: the types of the functions above.
    Ok(*unsafe { module.symbol::<F>(name)? })
}

fn patch(module: &Module, funcs: &[(&str, &str)]) -> Result<PatchSpec, Box<dyn Error>> {
    let func = |&(old, new): &(&str, &str)| {
        let new_func = module.symbol_info(new).ok_or("no such function")?.addr;
        Ok(FuncSpec { old_name: old.to_owned(), old_sympos: 0, new_func })
    };
    let funcs = funcs.iter().map(func).collect::<Result<_, Box<dyn Error>>>()?;
    let object = ObjectSpec { name: Some(module.name().to_owned()), funcs, callbacks: Callbacks::default() };
    Ok(PatchSpec { objects: vec![object], ..PatchSpec::default() })
}

fn settle(host: &Host) -> Result<(), Box<dyn Error>> {
    while host.patches()?.iter().any(|patch| patch.transition.is_some()) {
        thread::yield_now();
    }
    Ok(())
}

/// A handler that chooses the function like Linux's `klp_ftrace_handler`.
struct Handler {
    to: Addr,
    moved: AtomicBool,
}

impl Redirect for Handler {
    fn redirect(&self, _: &Call<'_>) -> Option<Addr> {
        self.moved.load(Ordering::Relaxed).then_some(self.to)
    }
}

/// Returns nanoseconds per call.
fn once(run: Run, leaf: Leaf, iterations: i64) -> f64 {
    let begun = Instant::now();
    black_box(run(leaf, black_box(iterations)));
    #[expect(clippy::as_conversions, reason = "a number of iterations, far below 2^53")]
    let calls = iterations as f64;
    begun.elapsed().as_secs_f64() * 1e9 / calls
}

/// Returns nanoseconds per checkpoint, including the loop.
fn checkpoint(host: &Host, iterations: i64) -> f64 {
    let begun = Instant::now();
    for _ in 0..iterations {
        black_box(black_box(host).checkpoint());
    }
    #[expect(clippy::as_conversions, reason = "a number of iterations, far below 2^53")]
    let count = iterations as f64;
    begun.elapsed().as_secs_f64() * 1e9 / count
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn quantile(times: &mut [Duration], hundredths: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * hundredths / 100).min(times.len() - 1)]
}

struct Nothing;

// SAFETY: the probe does nothing.
unsafe impl Probe for Nothing {
    type Answer = ();
    fn probe(&self, _: Interrupted<'_>) {}
}

/// Compares results with their reference: the target, and the limit for `--check`, which allows for other load on the
/// machine.
struct Figures {
    missed: String,
}

impl Figures {
    fn within(&mut self, what: &str, ratio: f64, (wanted, most): (f64, f64)) {
        println!("{what:54} {ratio:6.3} of its reference; target: at most {wanted}");
        if ratio > most {
            let _ = writeln!(self.missed, "{what}: {ratio:.3}, but at most {most} is allowed");
        }
    }
}

/// The number of iterations of a loop, and the number of repetitions.
#[derive(Clone, Copy)]
struct Effort {
    iterations: i64,
    rounds: usize,
}

const CALL: (f64, f64) = (1.02, 1.25);
const CALL_IN_TRANSITION: (f64, f64) = (1.3, 2.0);
const TRANSITION: (f64, f64) = (2.0, 4.0);
const ALONE: (f64, f64) = (1.0, 5.0);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let measured = asked("--bench") || asked("--check");
    let (iterations, rounds) = if measured { (20_000, 400) } else { (100, 1) };
    let effort = Effort { iterations, rounds };
    let mut figures = Figures { missed: String::new() };
    modload::process().trap_mask(TrapMask::Trusted);
    let host = Host::builder().process_symbols().build()?;
    let module = host.load(&image_from_text("leaves", TEXT))?;
    if !asked("--transitions") {
        calls(&host, &module, effort, &mut figures)?;
    }
    transitions(&host, &module, effort, &mut figures)?;
    alone(&host, &module, effort, &mut figures)?;
    if asked("--check") && !figures.missed.is_empty() {
        eprint!("{}", figures.missed);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures calls of a function that is patched or not, compared with calls of a function that cannot be patched.
fn calls(host: &Host, module: &Module, effort: Effort, figures: &mut Figures) -> Result<(), Box<dyn Error>> {
    let (run, plain, patched, handled): (Run, Leaf, Leaf, Leaf) =
        (symbol(module, "run")?, symbol(module, "plain")?, symbol(module, "patched")?, symbol(module, "handled")?);
    let beside_plain = |leaf: Leaf| {
        let (mut plains, mut leaves) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            plains.push(once(run, plain, effort.iterations));
            leaves.push(once(run, leaf, effort.iterations));
        }
        (median(&mut plains), median(&mut leaves))
    };
    let mut show = |what: &str, (plain, leaf): (f64, f64), most: (f64, f64)| {
        println!("{what:24} {leaf:6.2} ns, a plain call {plain:5.2} ns");
        figures.within(what, leaf / plain, most);
    };
    show("not patched", beside_plain(patched), CALL);
    let mut checkpoints: Vec<_> = (0..effort.rounds).map(|_| checkpoint(host, effort.iterations)).collect();
    println!("{:24} {:6.2} ns", "a checkpoint", median(&mut checkpoints));
    // A jump may take a cycle more, depending on the alignment of its target. So five targets are measured.
    let mut settled = Vec::new();
    for number in 0..5 {
        host.enable_patch("p", patch(module, &[("patched", &format!("new{number}"))])?, None)?;
        settle(host)?;
        settled.push(beside_plain(patched));
        host.disable_patch("p")?;
        settle(host)?;
    }
    settled.sort_by(|(plain, leaf), (other_plain, other)| (leaf / plain).total_cmp(&(other / other_plain)));
    show("settled, fastest of five", settled[0], CALL);
    show("settled, median of five", settled[2], CALL);
    show("settled, slowest of five", settled[4], CALL);
    for number in 0..5 {
        host.enable_patch(&format!("p{number}"), patch(module, &[("patched", &format!("new{number}"))])?, None)?;
    }
    settle(host)?;
    show("stacked five deep", beside_plain(patched), CALL);
    for number in (0..5).rev() {
        host.disable_patch(&format!("p{number}"))?;
        settle(host)?;
    }
    // A thread that stays in `waits` keeps the transition open.
    let release: extern "C" fn() = symbol(module, "release")?;
    let waits: Leaf = symbol(module, "waits")?;
    let reached = Arc::new(Barrier::new(2));
    let arrived = reached.clone();
    let waiting = thread::spawn(move || {
        arrived.wait();
        waits(1)
    });
    reached.wait();
    thread::sleep(Duration::from_millis(20));
    host.enable_patch("open", patch(module, &[("patched", "new0"), ("waits", "new_waits")])?, None)?;
    show("in transition, migrated", beside_plain(patched), CALL_IN_TRANSITION);
    // SAFETY: `new0` has the type of `handled`.
    let handler = unsafe {
        Redirecting::new(Handler { to: module.symbol_info("new0").ok_or("new0")?.addr, moved: AtomicBool::new(true) })
    };
    let handling = host.redirect("leaves:handled".parse()?, handler)?;
    let (_, time) = beside_plain(handled);
    println!("{:24} {time:6.2} ns", "a handler, as in the kernel");
    drop(handling);
    release();
    waiting.join().map_err(|_| "it panicked")?;
    settle(host)?;
    host.disable_patch("open")?;
    settle(host)
}

/// Enables and disables a patch once.
fn there_and_back(
    host: &Host,
    module: &Module,
    ons: &mut Vec<Duration>,
    offs: &mut Vec<Duration>,
) -> Result<(), Box<dyn Error>> {
    let wanted = patch(module, &[("patched", "new0")])?;
    let begun = Instant::now();
    host.enable_patch("p", wanted, None)?;
    settle(host)?;
    ons.push(begun.elapsed());
    let begun = Instant::now();
    host.disable_patch("p")?;
    settle(host)?;
    offs.push(begun.elapsed());
    Ok(())
}

/// Measures transitions of a process with sleeping threads, compared with signalling all threads and waiting for their
/// answers, and with holding them.
fn transitions(host: &Host, module: &Module, effort: Effort, figures: &mut Figures) -> Result<(), Box<dyn Error>> {
    let sleeping: Vec<_> = (0..64).map(|_| thread::spawn(thread::park)).collect();
    thread::sleep(Duration::from_millis(50));
    let [mut floors, mut holds, mut ons, mut offs] = [const { Vec::new() }; 4];
    for _ in 0..effort.rounds {
        let begun = Instant::now();
        run_in_each(&Nothing, Duration::from_secs(5))?;
        floors.push(begun.elapsed());
        let begun = Instant::now();
        drop(hold(Duration::from_secs(5))?);
        holds.push(begun.elapsed());
        there_and_back(host, module, &mut ons, &mut offs)?;
    }
    let all = [
        ("signalled and answered", &mut floors),
        ("held and released", &mut holds),
        ("patched", &mut ons),
        ("unpatched", &mut offs),
    ];
    for (what, times) in all {
        println!("64 sleeping threads, {what:20} p50 {:?}, p99 {:?}", quantile(times, 50), quantile(times, 99));
    }
    let of_floor = |times: &mut [Duration], floors: &mut [Duration]| {
        quantile(times, 50).as_secs_f64() / quantile(floors, 50).as_secs_f64()
    };
    figures.within("patched, with 64 sleeping threads", of_floor(&mut ons, &mut floors), TRANSITION);
    figures.within("unpatched, with 64 sleeping threads", of_floor(&mut offs, &mut floors), TRANSITION);
    sleeping.iter().for_each(|thread| thread.thread().unpark());
    sleeping.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

/// Measures transitions of a process with one thread.
fn alone(host: &Host, module: &Module, effort: Effort, figures: &mut Figures) -> Result<(), Box<dyn Error>> {
    let (mut ons, mut offs) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        there_and_back(host, module, &mut ons, &mut offs)?;
    }
    let (on, off) = (quantile(&mut ons, 50), quantile(&mut offs, 50));
    println!("alone: applied in {on:?}, reverted in {off:?} (libpulp: 4.1 ms)");
    figures.within("applied, of 0.2 ms", on.as_secs_f64() / 0.000_2, ALONE);
    figures.within("reverted, of 0.2 ms", off.as_secs_f64() / 0.000_2, ALONE);
    Ok(())
}
