//! Measures loading an object, looking up a symbol, calling it and unloading: modload compared with dlopen of the same
//! code and with the floor, in one process and one run, alternating in each round. On another machine only the ratios
//! are meaningful.
//!
//! `cargo bench` measures and prints. With `--check` it fails if a target is missed. `cargo test` runs each cycle once
//! and checks only the results of the calls. With `--instructions` the bench counts instructions instead: [`instructions`].

#![deny(unsafe_code)]

mod contenders;
mod instructions;
mod objects;
mod report;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use contenders::{Contender, Cycle, Dlopen, Floor, FloorArena, Modload, Source};
use modload::Host;
use objects::Object;
use report::Case;

/// The number of rounds before measuring.
const WARM_UP: usize = 50;
/// The number of measured rounds.
const ROUNDS: usize = 3000;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if let Some(object) = std::env::var_os(instructions::COUNTED) {
        instructions::cycles(Path::new(&object))?;
        return Ok(ExitCode::SUCCESS);
    }
    let asked = |option: &str| std::env::args().any(|argument| argument == option);
    // Cargo passes `--bench` for `cargo bench`, and no option for `cargo test`.
    let (warm_up, rounds) = if asked("--bench") || asked("--check") { (WARM_UP, ROUNDS) } else { (0, 1) };

    let folder = tempfile::tempdir()?;
    let tiny = Object::tiny(folder.path())?;
    let medium = Object::medium(folder.path())?;
    if asked("--instructions") {
        return instructions::run(&[&tiny, &medium], asked("--check"), asked("--write"));
    }
    // The floor allocates first, because it needs little memory and takes it at the end of the low 2 GiB.
    let arena = FloorArena::open()?;
    let host = Host::builder().process_symbols().build()?;

    let mut cases = Vec::new();
    for object in [&tiny, &medium] {
        for source in [Source::File, Source::Memory] {
            let modload = Modload { host: &host, object, source };
            let dlopens: Vec<_> = object.linked.iter().map(|linked| Dlopen { linked, source }).collect();
            let floor = Floor { arena, object, source };
            let mut contenders: Vec<&dyn Contender> = vec![&modload];
            contenders.extend(dlopens.iter().map(|dlopen| -> &dyn Contender { dlopen }));
            contenders.push(&floor);
            let cycles = run(&contenders, warm_up, rounds)?;
            cases.push(Case::new(format!("{}, from {source}", object.name), &contenders, &cycles));
        }
    }
    if rounds == 1 {
        return Ok(ExitCode::SUCCESS);
    }
    let met = report::print(&cases, rounds);
    Ok(if met || !asked("--check") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the contenders in turn, and begins each round with another one. Returns the cycles of each contender.
fn run(contenders: &[&dyn Contender], warm_up: usize, rounds: usize) -> Result<Vec<Vec<Cycle>>, Box<dyn Error>> {
    let mut cycles = vec![Vec::with_capacity(rounds); contenders.len()];
    let mut expected = None;
    for round in 0..warm_up + rounds {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            let cycle = contenders[which].cycle()?;
            if *expected.get_or_insert(cycle.result) != cycle.result {
                return Err(format!("{}: the call returns {}", contenders[which].name(), cycle.result).into());
            }
            if round >= warm_up {
                cycles[which].push(cycle);
            }
        }
    }
    Ok(cycles)
}
