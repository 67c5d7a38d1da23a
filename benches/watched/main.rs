//! Measures the cost of debuggers and profilers: loads and unloads with and without gdb's list and perf's map, with few
//! and with many loaded modules. No gdb is attached, so gdb's own time is not included.

use std::time::{Duration, Instant};

use modload::{Host, HostBuilder, Image, Module};
use modload_fixtures::{Compiler, Fixture};

type Options = fn(HostBuilder) -> HostBuilder;

const WAYS: [(&str, Options); 3] = [
    ("no observer", |builder| builder),
    ("gdb's list", HostBuilder::debugger),
    ("perf's map", |builder| builder.perf_map().expect("the map can be written")),
];

fn main() {
    let measures = std::env::args().any(|argument| argument == "--bench");
    let (counts, rounds) = if measures { (&[1, 1000, 10_000][..], 301) } else { (&[1, 2][..], 3) };
    let object = Fixture::new("watched").object(Compiler::Cc, &["-O2", "-fPIC", "-g"]).expect("it can be compiled");
    let bytes = std::fs::read(object).expect("it can be read");
    if measures {
        println!("{:>14} {:>10} {:>12} {:>12}", "", "modules", "load", "unload");
    }
    for (name, options) in WAYS {
        let host = options(Host::builder().process_symbols()).build().expect("an arena");
        let mut modules: Vec<Module> = Vec::new();
        for &count in counts {
            while modules.len() < count {
                modules.push(load(&host, &bytes, &format!("m{}", modules.len())));
            }
            let cycles: Vec<_> = (0..rounds).map(|_| cycle(&host, &bytes)).collect();
            let median = |mut times: Vec<Duration>| {
                times.sort_unstable();
                times[times.len() / 2]
            };
            let loads = median(cycles.iter().map(|(load, _)| *load).collect());
            let unloads = median(cycles.iter().map(|(_, unload)| *unload).collect());
            if measures {
                println!("{name:>14} {count:>10} {loads:>12.2?} {unloads:>12.2?}");
            }
        }
    }
    let _ = std::fs::remove_file(format!("/tmp/perf-{}.map", std::process::id()));
}

fn cycle(host: &Host, bytes: &[u8]) -> (Duration, Duration) {
    let begin = Instant::now();
    let module = load(host, bytes, "one");
    let loaded = begin.elapsed();
    let begin = Instant::now();
    module.unload().expect("it is not in use");
    (loaded, begin.elapsed())
}

fn load(host: &Host, bytes: &[u8], name: &str) -> Module {
    // SAFETY: the fixture does what its source says.
    let image = unsafe { Image::trusted(bytes) }.named(name);
    host.load(&image).expect("it can be loaded")
}
