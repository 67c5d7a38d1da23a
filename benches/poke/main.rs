//! Measures changes of published text in ns per site. modload is compared with the same three passes in C without
//! checks, with chunks of 256 sites as in Linux, with one site at a time, with one store per site, and with changed
//! protections. All in one run, alternating.
//!
//! `cargo bench` measures and prints. With `--check` it fails if a target is missed. `cargo test` runs each contender
//! once.

#![deny(unsafe_code)]

mod contenders;
mod report;

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use contenders::{Contender, Floor, How, Modload, OneByOne, Three};
use modload_tests::Sites;
use modload_text::TrapMask;
use report::{Load, Row};

/// The distances between two sites: typical of functions, and a page.
const CLOSE: u64 = 64;
const PAGE: u64 = 4096;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    let measured = asked("--bench") || asked("--check");
    let mut rows = Vec::new();
    // A second thread, which waits all the time: in a process of one thread text is poked in another way.
    let (other, others) = channel::<()>();
    let waiting = thread::spawn(move || others.recv());
    measure(CLOSE, &[1, 100, 10_000, 50_000], measured, &mut rows)?;
    measure(PAGE, &[1, 100, 10_000], measured, &mut rows)?;
    drop(other);
    // The receiver ends with an error when the sender is dropped, as intended.
    let _ = waiting.join();
    if !measured {
        return Ok(ExitCode::SUCCESS);
    }
    let met = report::print(&rows);
    Ok(if met || !asked("--check") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures all contenders on sites `stride` bytes apart, for each number of sites: idle, and with a thread that
/// executes the sites all the time.
fn measure(stride: u64, counts: &[usize], measured: bool, rows: &mut Vec<Row>) -> Result<(), Box<dyn Error>> {
    let most = counts.iter().copied().max().unwrap_or(0);
    let sites = Sites::publish(most, stride, Some(0));
    let floor = Floor::open(most, stride)?;
    for &count in counts {
        let mut contenders: Vec<Box<dyn Contender>> = vec![
            Box::new(Modload::new(&sites, count, TrapMask::Trusted)),
            Box::new(Modload::new(&sites, count, TrapMask::Checked)),
            Box::new(Floor::contender(How::Passes, count)),
            Box::new(Floor::contender(How::Chunks, count)),
            Box::new(Floor::contender(How::Stores, count)),
        ];
        if count <= 100 {
            contenders.push(Box::new(OneByOne::new(&sites, count)));
            contenders.push(Box::new(Floor::contender(How::OneByOne, count)));
            contenders.push(Box::new(Floor::contender(How::Flips, count)));
        }
        if count == 1 {
            contenders.push(Box::new(Three));
        }
        for load in [Load::Idle, Load::Busy] {
            let rounds = if measured { 21.max(20_000 / count.max(20)) } else { 1 };
            for (name, mut times) in run(&contenders, &sites, &floor, count, load, rounds)? {
                times.sort_by(f64::total_cmp);
                let median = times[times.len() / 2];
                rows.push(Row { contender: name, stride, count, load, ns: median * 1e9 / report::number(count) });
            }
        }
    }
    Ok(())
}

/// The name of a contender, and the seconds of each of its turns.
type Times = (&'static str, Vec<f64>);

/// Turns the sites on and off again, contender by contender. Returns the seconds of each turn.
fn run(
    contenders: &[Box<dyn Contender + '_>],
    sites: &Sites,
    floor: &Floor,
    count: usize,
    load: Load,
    rounds: usize,
) -> Result<Vec<Times>, Box<dyn Error>> {
    let mut times: Vec<_> = contenders.iter().map(|contender| (contender.name(), Vec::new())).collect();
    for _ in 0..rounds {
        for (contender, (_, times)) in contenders.iter().zip(&mut times) {
            if load == Load::Busy && !contender.may_be_running() {
                continue;
            }
            contender.begin()?;
            let (stop, runs) = (AtomicBool::new(false), AtomicBool::new(load == Load::Idle));
            let measured = thread::scope(|scope| {
                if load == Load::Busy {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            (0..count).for_each(|site| contender.call(sites, floor, site));
                            runs.store(true, Ordering::Relaxed);
                        }
                    });
                }
                while !runs.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                let measured = [true, false].map(|on| {
                    let begun = Instant::now();
                    contender.turn(on)?;
                    Ok::<f64, Box<dyn Error>>(begun.elapsed().as_secs_f64())
                });
                stop.store(true, Ordering::Relaxed);
                measured
            });
            contender.end()?;
            for seconds in measured {
                times.push(seconds?);
            }
        }
    }
    times.retain(|(_, times)| !times.is_empty());
    Ok(times)
}
