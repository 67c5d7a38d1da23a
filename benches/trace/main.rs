//! Measures the call of a traced function, for all ways of tracing, compared with the plain call, the floors, and other
//! tracers on the same function. Also measures the switching of a thousand functions.
//!
//! `cargo bench` measures and prints. With `--check` it fails if a target is missed. `cargo test` runs each measurement
//! once.

mod others;

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use modload::text::TrapMask;
use modload::trace::Missed;
use modload::trace::{Call, Filter, Mode, TraceOptions};
use modload::{Host, Module};
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

/// The actions around a measurement. Returns the calls that were not recorded.
type With<'c> = dyn Fn(&mut dyn FnMut()) -> Result<Missed, Box<dyn Error>> + 'c;

/// A measurement, run in every round. `with` switches tracing on, calls its argument to time the function, and takes
/// the recorded calls.
struct Contender<'c> {
    what: &'static str,
    leaf: Leaf,
    with: Box<With<'c>>,
    /// Nanoseconds per call, of each round.
    times: Vec<f64>,
    missed: u64,
}

impl<'c> Contender<'c> {
    fn new(
        what: &'static str,
        leaf: Leaf,
        with: impl Fn(&mut dyn FnMut()) -> Result<Missed, Box<dyn Error>> + 'c,
    ) -> Contender<'c> {
        Contender { what, leaf, with: Box::new(with), times: Vec::new(), missed: 0 }
    }

    fn alone(what: &'static str, leaf: Leaf) -> Contender<'c> {
        Contender::new(what, leaf, |time| {
            time();
            Ok(Missed::default())
        })
    }

    fn round(&mut self, run: Run, iterations: u32) -> Result<(), Box<dyn Error>> {
        let (leaf, times) = (self.leaf, &mut self.times);
        let mut time = || {
            // Runs once before, to warm up the processor's caches and predictors.
            black_box(run(leaf, black_box(i64::from(iterations / 20))));
            let begun = Instant::now();
            let result = black_box(run(leaf, black_box(i64::from(iterations))));
            times.push(begun.elapsed().as_secs_f64() * 1e9 / f64::from(iterations));
            assert_eq!(result.cast_unsigned(), iterations);
        };
        self.missed += (self.with)(&mut time)?.total();
        Ok(())
    }

    fn median(&mut self) -> f64 {
        self.times.sort_by(f64::total_cmp);
        self.times[self.times.len() / 2]
    }
}

/// Returns the contenders, in the order of the table.
fn contenders(host: &Host, plain: Leaf, traced: Leaf) -> Vec<Contender<'_>> {
    fn empty_callback(_: &Call<'_>) {}
    let filter = || "leaves:traced".parse::<Filter>();
    let record = |mode| {
        move |time: &mut dyn FnMut()| {
            let trace = host.trace_functions(&TraceOptions::new(mode).pattern("leaves:traced")?)?;
            time();
            Ok(trace.finish().missed)
        }
    };
    vec![
        Contender::alone("plain", plain),
        Contender::alone("site off", traced),
        Contender::alone("floor of a callback", floor_callback),
        Contender::new("empty callback", traced, move |time| {
            let _tracing = host.trace(filter()?, empty_callback)?;
            time();
            Ok(Missed::default())
        }),
        Contender::new("empty callback, all registers", traced, move |time| {
            let _tracing = host.trace_with_registers(filter()?, empty_callback)?;
            time();
            Ok(Missed::default())
        }),
        Contender::new("two empty callbacks", traced, move |time| {
            let _tracing = [host.trace(filter()?, empty_callback)?, host.trace(filter()?, empty_callback)?];
            time();
            Ok(Missed::default())
        }),
        Contender::new("call recorded", traced, record(Mode::Calls)),
        Contender::alone("floor of entry and return", floor_graph),
        Contender::new("entry and return recorded", traced, record(Mode::Graph)),
    ]
}

/// The targets: the first takes at most this multiple of the second.
const TARGETS: [(&str, &str, f64); 3] = [
    ("site off", "plain", 1.01),
    ("empty callback", "floor of a callback", 1.5),
    ("entry and return recorded", "floor of entry and return", 1.3),
];

/// The limit in nanoseconds for switching each of a thousand functions.
const SWITCHED: u128 = 150;

fn symbol<F: Copy>(module: &Module, name: &str) -> Result<F, Box<dyn Error>> {
    // SAFETY: the types of the functions above.
    Ok(*unsafe { module.symbol::<F>(name)? })
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let measured = asked("--bench") || asked("--check");
    let (iterations, rounds) = if measured { (20_000, 300) } else { (100, 1) };
    modload::process().trap_mask(TrapMask::Trusted);
    let host = Host::builder().build()?;
    if asked("--switching") {
        // Only switching, for profiling.
        switching(&host, 5000)?;
        return Ok(ExitCode::SUCCESS);
    }
    let module = host.load(&image_from_text("leaves", TEXT))?;
    let (run, plain, traced): (Run, Leaf, Leaf) =
        (symbol(&module, "run")?, symbol(&module, "plain")?, symbol(&module, "traced")?);
    let mut contenders = contenders(&host, plain, traced);
    for round in 0..rounds {
        let count = contenders.len();
        for number in 0..count {
            contenders[(round + number) % count].round(run, iterations)?;
        }
    }
    let mut met = true;
    let medians: Vec<_> = contenders.iter_mut().map(|one| (one.what, one.median())).collect();
    for (what, median) in &medians {
        println!("{what:32} {median:7.2} ns");
    }
    let missed: u64 = contenders.iter().map(|one| one.missed).sum();
    println!("not recorded: {missed} calls");
    met &= missed == 0;
    let median = |what| medians.iter().find(|(one, _)| *one == what).map_or(f64::NAN, |(_, median)| *median);
    for (what, next_to, most) in TARGETS {
        let ratio = median(what) / median(next_to);
        println!("{what} is {ratio:.2} times {next_to}; wanted: {most} at most");
        met &= ratio <= most;
    }
    for (what, each) in ["on", "off"].into_iter().zip(switching(&host, if measured { 101 } else { 1 })?) {
        println!("switching 1000 functions {what}: {each} ns each; wanted: {SWITCHED} at most");
        met &= each <= SWITCHED;
    }
    for others::Other { what, measured } in others::all(iterations) {
        match measured {
            Ok(time) => println!("{what:32} {time:7.2} ns"),
            Err(why) => eprintln!("SKIPPED {what}: {why}"),
        }
    }
    Ok(if met || !asked("--check") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns functions of about 180 bytes each.
fn many() -> String {
    let mut text = String::new();
    for number in 0..1000 {
        text += &format!(
            "__attribute__((patchable_function_entry(5))) int f{number}(int a) {{ __asm__ volatile(\".fill 170, 1, 0x90\"); return a + {number}; }}\n"
        );
    }
    text
}

/// Measures switching a thousand functions on and off. Returns nanoseconds for each function, as medians.
fn switching(host: &Host, rounds: usize) -> Result<[u128; 2], Box<dyn Error>> {
    let _module = host.load(&image_from_text("many", &many()))?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let begun = Instant::now();
        let tracing = host.trace("many:*".parse()?, |_: &Call<'_>| {})?;
        times[0].push(begun.elapsed().as_nanos() / 1000);
        let begun = Instant::now();
        drop(tracing);
        times[1].push(begun.elapsed().as_nanos() / 1000);
    }
    println!("the first time, with stubs that are made: {} ns each", times[0][0]);
    Ok(times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    }))
}
