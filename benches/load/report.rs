//! Prints the tables and checks the targets.

use std::time::Duration;

use crate::contenders::{Contender, Cycle};

/// The results for one object from one source: a row for each contender, modload's first.
pub(crate) struct Case {
    name: String,
    rows: Vec<Row>,
}

/// A contender's median times in microseconds.
struct Row {
    contender: &'static str,
    total: f64,
    quartiles: (f64, f64),
    load: f64,
    symbol: f64,
    call: f64,
    unload: f64,
}

/// A target: modload's total time as a multiple of another contender's.
struct Target {
    case: &'static str,
    contender: &'static str,
    at_most: f64,
}

const TARGETS: [Target; 4] = [
    Target { case: "tiny, from a file", contender: "dlopen", at_most: 0.5 },
    Target { case: "tiny, from memory", contender: "dlopen", at_most: 0.5 },
    Target { case: "medium, from a file", contender: "floor", at_most: 3.0 },
    Target { case: "medium, from memory", contender: "floor", at_most: 3.0 },
];

impl Case {
    pub(crate) fn new(name: String, contenders: &[&dyn Contender], cycles: &[Vec<Cycle>]) -> Case {
        let rows = contenders.iter().zip(cycles).map(|(contender, cycles)| Row::new(contender.name(), cycles));
        Case { name, rows: rows.collect() }
    }

    /// Returns modload's time as a multiple of another contender's.
    fn ratio(&self, contender: &str) -> Option<f64> {
        let total = |name| self.rows.iter().find(|row| row.contender == name).map(|row| row.total);
        Some(total("modload")? / total(contender)?)
    }
}

impl Row {
    fn new(contender: &'static str, cycles: &[Cycle]) -> Row {
        let sorted = |time: fn(&Cycle) -> Duration| {
            let mut times: Vec<f64> = cycles.iter().map(|cycle| time(cycle).as_secs_f64() * 1e6).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let median = |time| quantile(&sorted(time), 2);
        let totals = sorted(Cycle::total);
        Row {
            contender,
            total: quantile(&totals, 2),
            quartiles: (quantile(&totals, 1), quantile(&totals, 3)),
            load: median(|cycle| cycle.load),
            symbol: median(|cycle| cycle.symbol),
            call: median(|cycle| cycle.call),
            unload: median(|cycle| cycle.unload),
        }
    }
}

/// Returns the quantile of sorted values, in quarters.
fn quantile(sorted: &[f64], quarters: usize) -> f64 {
    sorted.get(sorted.len() * quarters / 4).copied().unwrap_or(f64::NAN)
}

/// Prints all results. Returns whether every target is met.
pub(crate) fn print(cases: &[Case], rounds: usize) -> bool {
    println!(
        "Medians in us of {rounds} rounds in turn; \"modload is\": modload's total as a multiple of this one's.\n"
    );
    println!(
        "{:<28} {:>9} {:>19} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "", "total", "(quartiles)", "load", "look up", "call", "unload", "modload is"
    );
    for case in cases {
        println!("{}", case.name);
        for row in &case.rows {
            let (low, high) = row.quartiles;
            let ratio = case.ratio(row.contender).filter(|_| row.contender != "modload");
            println!(
                "  {:<26} {:>9.2} {:>19} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>12}",
                row.contender,
                row.total,
                format!("({low:.2} .. {high:.2})"),
                row.load,
                row.symbol,
                row.call,
                row.unload,
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
            );
        }
    }
    println!();
    let mut met = true;
    for Target { case, contender, at_most } in TARGETS {
        let measured = cases.iter().find(|measured| measured.name == case).and_then(|case| case.ratio(contender));
        // A target without a measurement is missed.
        let ratio = measured.unwrap_or(f64::INFINITY);
        let verdict = if ratio <= at_most { "met" } else { "MISSED" };
        let margin = (at_most / ratio - 1.0) * 100.0;
        println!("{case}: {ratio:.2}x {contender}, wanted at most {at_most:.2}x: {verdict}, margin {margin:+.0}%");
        met &= ratio <= at_most;
    }
    met
}
