//! What a call of a patched function costs: settled, in transition, stacked; next to a plain call, and to a handler that is called
//! and picks, as the kernel's does. And how long transitions take, next to signalling all threads and hearing back.
//!
//! `cargo bench` measures and prints; with `--check` it fails if a target is missed. `cargo test` runs each once.

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use modload::{Addr, Call, Callbacks, FuncSpec, Host, Module, ObjectSpec, PatchSpec, Redirect, Redirecting, TrapMask};
use modload_tests::image_from_text;
use modload_threads::{Interrupted, Probe, run_in_each};

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

/// Picks as Linux's `klp_ftrace_handler` does.
struct Handler {
    to: Addr,
    moved: AtomicBool,
}

impl Redirect for Handler {
    fn redirect(&self, _: &Call<'_>) -> Option<Addr> {
        self.moved.load(Ordering::Relaxed).then_some(self.to)
    }
}

/// Nanoseconds a call.
fn once(run: Run, leaf: Leaf, iterations: i64) -> f64 {
    let begun = Instant::now();
    black_box(run(leaf, black_box(iterations)));
    #[expect(clippy::as_conversions, reason = "a number of iterations, far below 2^53")]
    let calls = iterations as f64;
    begun.elapsed().as_secs_f64() * 1e9 / calls
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

// SAFETY: does nothing.
unsafe impl Probe for Nothing {
    type Answer = ();
    fn probe(&self, _: Interrupted<'_>) {}
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let (iterations, rounds) = if asked("--bench") || asked("--check") { (20_000, 400) } else { (100, 1) };
    let check = asked("--check");
    let mut missed = String::new();
    let mut within = |what: &str, ratio: f64, most: f64| {
        println!("{what:54} {ratio:6.3} of what it is next to, at most {most}");
        if ratio > most {
            let _ = writeln!(missed, "{what}: {ratio:.3}, and at most {most}");
        }
    };
    let host = Host::builder().process_symbols().trap_mask(TrapMask::Trusted).build()?;
    let module = host.load(&image_from_text("leaves", TEXT))?;
    let (run, plain, patched, handled): (Run, Leaf, Leaf, Leaf) =
        (symbol(&module, "run")?, symbol(&module, "plain")?, symbol(&module, "patched")?, symbol(&module, "handled")?);
    let beside_plain = |leaf: Leaf| {
        let (mut plains, mut leaves) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            plains.push(once(run, plain, iterations));
            leaves.push(once(run, leaf, iterations));
        }
        (median(&mut plains), median(&mut leaves))
    };
    let mut show = |what: &str, (plain, leaf): (f64, f64), most: f64| {
        println!("{what:24} {leaf:6.2} ns, a plain call {plain:5.2} ns");
        within(what, leaf / plain, most);
    };
    show("not patched", beside_plain(patched), 1.02);
    host.enable_patch("p0", patch(&module, &[("patched", "new0")])?, None)?;
    settle(&host)?;
    show("settled", beside_plain(patched), 1.02);
    for number in 1..5 {
        host.enable_patch(&format!("p{number}"), patch(&module, &[("patched", &format!("new{number}"))])?, None)?;
    }
    settle(&host)?;
    show("stacked five deep", beside_plain(patched), 1.02);
    for number in (0..5).rev() {
        host.disable_patch(&format!("p{number}"))?;
        settle(&host)?;
    }
    // A thread that stays in `waits` keeps the transition open.
    let release: extern "C" fn() = symbol(&module, "release")?;
    let waits: Leaf = symbol(&module, "waits")?;
    let there = Arc::new(Barrier::new(2));
    let arrived = there.clone();
    let waiting = thread::spawn(move || {
        arrived.wait();
        waits(1)
    });
    there.wait();
    thread::sleep(Duration::from_millis(20));
    host.enable_patch("open", patch(&module, &[("patched", "new0"), ("waits", "new_waits")])?, None)?;
    show("in transition, over", beside_plain(patched), 1.3);
    // SAFETY: `new0` is made as `handled` is.
    let handler = unsafe {
        Redirecting::new(Handler { to: module.symbol_info("new0").ok_or("new0")?.addr, moved: AtomicBool::new(true) })
    };
    let handling = host.redirect("leaves:handled".parse()?, handler)?;
    let (_, time) = beside_plain(handled);
    println!("{:24} {time:6.2} ns", "a handler, as the kernel's");
    drop(handling);
    release();
    waiting.join().map_err(|_| "it panicked")?;
    settle(&host)?;
    host.disable_patch("open")?;
    settle(&host)?;

    // Threads that sleep.
    let sleeping: Vec<_> = (0..64).map(|_| thread::spawn(thread::park)).collect();
    thread::sleep(Duration::from_millis(50));
    let (mut floors, mut ons, mut offs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        run_in_each(&Nothing, Duration::from_secs(5))?;
        floors.push(begun.elapsed());
        let begun = Instant::now();
        host.enable_patch("p", patch(&module, &[("patched", "new0")])?, None)?;
        settle(&host)?;
        ons.push(begun.elapsed());
        let begun = Instant::now();
        host.disable_patch("p")?;
        settle(&host)?;
        offs.push(begun.elapsed());
    }
    for (what, times) in [("signalled and heard", &mut floors), ("patched", &mut ons), ("unpatched", &mut offs)] {
        println!("64 sleeping threads, {what:20} p50 {:?}, p99 {:?}", quantile(times, 50), quantile(times, 99));
    }
    within(
        "a transition with 64 sleeping threads",
        quantile(&mut ons, 50).as_secs_f64() / quantile(&mut floors, 50).as_secs_f64(),
        2.0,
    );
    sleeping.iter().for_each(|thread| thread.thread().unpark());
    sleeping.into_iter().for_each(|thread| drop(thread.join()));

    let (mut ons, mut offs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        host.enable_patch("p", patch(&module, &[("patched", "new0")])?, None)?;
        settle(&host)?;
        ons.push(begun.elapsed());
        let begun = Instant::now();
        host.disable_patch("p")?;
        settle(&host)?;
        offs.push(begun.elapsed());
    }
    println!(
        "alone: applied in {:?}, reverted in {:?} (libpulp: 4.1 ms)",
        quantile(&mut ons, 50),
        quantile(&mut offs, 50)
    );
    within("applied, of 0.2 ms", quantile(&mut ons, 50).as_secs_f64() / 0.000_2, 1.0);
    within("reverted, of 0.2 ms", quantile(&mut offs, 50).as_secs_f64() / 0.000_2, 1.0);
    if check && !missed.is_empty() {
        eprint!("{missed}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
