//! What a call of a traced function costs, in all ways of tracing it, next to the plain call and to the floors; and what switching
//! a thousand functions costs.
//!
//! `cargo bench` measures and prints; with `--check` it fails if a target is missed. `cargo test` runs each once.

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use modload::{Call, Host, Mode, Module, TraceOptions, TrapMask};
use modload_tests::image_from_text;

const TEXT: &str = "
#define LEAF(name, nops) \\
    __attribute__((noinline, aligned(64), patchable_function_entry(nops))) int name(int a) { return a + 1; }
LEAF(plain, 0)
LEAF(traced, 5)
__attribute__((aligned(64), patchable_function_entry(0))) int run(int (*f)(int), long n)
{
    int a = 0;
    for (long i = 0; i < n; i++)
        a = f(a);
    return a;
}
";

unsafe extern "C" {
    fn floor_callback(a: i32) -> i32;
    fn floor_graph(a: i32) -> i32;
}

#[link(name = "trace", kind = "static")]
unsafe extern "C" {}

type Leaf = unsafe extern "C" fn(i32) -> i32;
type Run = extern "C" fn(Leaf, i64) -> i32;

/// Nanoseconds a call, the median of rounds.
fn measure(run: Run, leaf: Leaf, (iterations, rounds): (i64, usize), mut between: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            black_box(run(leaf, black_box(iterations)));
            let took = begun.elapsed().as_secs_f64();
            between();
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    #[expect(clippy::as_conversions, reason = "a number of iterations, far below 2^53")]
    let iterations = iterations as f64;
    times[times.len() / 2] * 1e9 / iterations
}

fn symbol<F: Copy>(module: &Module, name: &str) -> Result<F, Box<dyn Error>> {
    // SAFETY: the types of the functions above.
    Ok(*unsafe { module.symbol::<F>(name)? })
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let measured = asked("--bench") || asked("--check");
    let size = if measured { (20_000, 400) } else { (100, 1) };
    let host = Host::builder().trap_mask(TrapMask::Trusted).build()?;
    if asked("--switching") {
        // Nothing else, for a profile.
        switching(&host, 5000)?;
        return Ok(ExitCode::SUCCESS);
    }
    let module = host.load(&image_from_text("leaves", TEXT))?;
    let (run, plain, traced): (Run, Leaf, Leaf) =
        (symbol(&module, "run")?, symbol(&module, "plain")?, symbol(&module, "traced")?);
    let filter = || "leaves:traced".parse().map_err(Box::<dyn Error>::from);
    let show = |what: &str, time: f64| println!("{what:32} {time:7.2} ns");
    show("plain", measure(run, plain, size, || {}));
    show("site off", measure(run, traced, size, || {}));
    show("floor of a callback", measure(run, floor_callback, size, || {}));
    {
        let _tracing = host.trace(filter()?, |_: &Call<'_>| {})?;
        show("empty callback", measure(run, traced, size, || {}));
        let _second = host.trace(filter()?, |_: &Call<'_>| {})?;
        show("two empty callbacks", measure(run, traced, size, || {}));
    }
    {
        let _tracing = host.trace_with_registers(filter()?, |_: &Call<'_>| {})?;
        show("with all registers", measure(run, traced, size, || {}));
    }
    {
        let mut trace = host.trace_functions(&TraceOptions::new(Mode::Calls).pattern("leaves:traced")?)?;
        show("recorded", measure(run, traced, size, || drop(trace.drain())));
        println!("{:?}", trace.finish().missed);
    }
    show("floor of entry and return", measure(run, floor_graph, size, || {}));
    {
        let mut trace = host.trace_functions(&TraceOptions::new(Mode::Graph).pattern("leaves:traced")?)?;
        show("entry and return recorded", measure(run, traced, size, || drop(trace.drain())));
        println!("{:?}", trace.finish().missed);
    }
    switching(&host, if measured { 51 } else { 1 })?;
    Ok(ExitCode::SUCCESS)
}

/// Functions of about 180 bytes each.
fn many() -> String {
    let mut text = String::new();
    for number in 0..1000 {
        text += &format!(
            "__attribute__((patchable_function_entry(5))) int f{number}(int a) {{ __asm__ volatile(\".fill 170, 1, 0x90\"); return a + {number}; }}\n"
        );
    }
    text
}

/// What it takes to switch a thousand functions on and off.
fn switching(host: &Host, rounds: usize) -> Result<(), Box<dyn Error>> {
    let module = host.load(&image_from_text("many", &many()))?;
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let tracing = host.trace("many:*".parse()?, |_: &Call<'_>| {})?;
        on.push(begun.elapsed().as_nanos());
        let begun = Instant::now();
        drop(tracing);
        off.push(begun.elapsed().as_nanos());
    }
    println!("first {} ns each", on[0] / 1000);
    for (what, mut times) in [("on", on), ("off", off)] {
        times.sort_unstable();
        println!("switching 1000 functions {what}: {} ns each", times[times.len() / 2] / 1000);
    }
    drop(module);
    Ok(())
}
