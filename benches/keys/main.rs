//! Measures a disabled static key and a static call, compared with a NOP and a direct call, in one run and alternating;
//! and the switching of a key with one site.
//!
//! `cargo bench` measures and prints. With `--check` it fails if a target is missed. `cargo test` runs each loop once.

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use modload::keys::StaticKey;
use modload::text::TrapMask;
use modload::{Host, Symbol};
use modload_tests::image_from_text;

/// Loops, each with one operation per iteration.
const LOOPS: &str = "
#include <modload/jump_label.h>
#include <modload/static_call.h>
#pragma GCC visibility push(hidden)
static DEFINE_STATIC_KEY_FALSE(off);
static volatile int variable;
static long counted;
DECLARE_STATIC_KEY_FALSE(hosts_key);

static __attribute__((noinline)) void callee(void) { __asm__ volatile(\"\"); }
DEFINE_STATIC_CALL(step, callee);
static void (*volatile pointer)(void) = callee;

#define LOOP(name, body)                                                                                             \\
    __attribute__((aligned(64))) long name(long n)                                                                   \\
    {                                                                                                                \\
        for (long i = 0; i < n; i++) {                                                                               \\
            __asm__ volatile(\"\");                                                                                  \\
            body;                                                                                                    \\
        }                                                                                                            \\
        return counted;                                                                                              \\
    }

LOOP(nothing, )
LOOP(nop, __asm__ volatile(\".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\"))
LOOP(key_off, if (static_branch_unlikely(&off)) counted++)
LOOP(variable_off, if (__builtin_expect(variable, 0)) counted++)
LOOP(direct_call, callee())
LOOP(static_call_of_it, static_call(step)())
LOOP(pointer_call, pointer())
int hosts(int unused) { (void)unused; return static_branch_unlikely(&hosts_key); }
MODULE_LICENSE(\"Dual MIT/GPL\");
";

const NAMES: [&str; 7] =
    ["nothing", "nop", "key_off", "variable_off", "direct_call", "static_call_of_it", "pointer_call"];

static HOSTS_KEY: StaticKey = StaticKey::disabled();

/// The targets: the first loop takes at most this multiple of the second.
const TARGETS: [(&str, &str, f64); 2] = [("key_off", "nop", 1.02), ("static_call_of_it", "direct_call", 1.02)];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let measured = asked("--bench") || asked("--check");
    let (iterations, rounds) = if measured { (2_000_000, 201) } else { (1000, 1) };
    modload::process().trap_mask(TrapMask::Trusted);
    let host = Host::builder().static_key("hosts_key", &HOSTS_KEY).build()?;
    let module = host.load(&image_from_text("loops", LOOPS))?;
    let mut loops = Vec::new();
    for name in NAMES {
        // SAFETY: each is a `long f(long)`.
        let run: Symbol<'_, extern "C" fn(i64) -> i64> = unsafe { module.symbol(name)? };
        loops.push((name, run, Vec::new()));
    }
    for _ in 0..rounds {
        for (_, run, times) in &mut loops {
            let begun = Instant::now();
            black_box(run(black_box(iterations)));
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    let mut switches = Vec::new();
    for _ in 0..rounds * 50 {
        let begun = Instant::now();
        HOSTS_KEY.enable()?;
        HOSTS_KEY.disable()?;
        switches.push(begun.elapsed().as_secs_f64() / 2.0);
    }
    if !measured {
        return Ok(ExitCode::SUCCESS);
    }
    // Converts i64 to f64 without a cast: the number is a small power of ten.
    let per_loop = 1e9 / f64::from(i32::try_from(iterations)?);
    let medians: Vec<_> = loops.into_iter().map(|(name, _, times)| (name, median(times) * per_loop)).collect();
    println!("Medians of {rounds} rounds, ns per iteration; each loop's own cost is that of `nothing`.\n");
    for (name, ns) in &medians {
        println!("{name:<20} {ns:>8.3}");
    }
    println!("\nswitching a key with one site (trusted): {:.2} us\n", median(switches) * 1e6);
    let of = |name| medians.iter().find(|(other, _)| *other == name).map_or(f64::NAN, |(_, ns)| *ns);
    let mut met = true;
    for (one, other, at_most) in TARGETS {
        let ratio = of(one) / of(other);
        let verdict = if ratio <= at_most { "met" } else { "MISSED" };
        println!("{one}: {ratio:.3}x {other}, wanted at most {at_most}x: {verdict}");
        met &= ratio <= at_most;
    }
    Ok(if met || !asked("--check") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
