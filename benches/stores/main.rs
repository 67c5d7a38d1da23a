//! Tests whether one store of eight bytes would be enough to change a site (which modload does not offer): how this
//! processor behaves, and for how many sites it could be used. `docs/poke.md` has the results.
//!
//! `cargo bench --bench stores` takes half a minute. `cargo test` runs each way for some milliseconds and measures
//! nothing.

mod probe;
mod share;

use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let table = probe::table(if measured { 3000 } else { 20 })?;
    let shares = share::table(measured)?;
    if measured {
        println!("{}\n\n{table}\n{shares}", processor()?);
    }
    Ok(())
}

/// Returns the processor's name, from /proc/cpuinfo.
fn processor() -> Result<String, Box<dyn Error>> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let value = |name: &str| {
        let line = info.lines().find(|line| line.split('\t').next() == Some(name));
        line.and_then(|line| line.split_once(": ")).map_or("?", |(_, value)| value).to_owned()
    };
    let [vendor, name, family, model] = ["vendor_id", "model name", "cpu family", "model"].map(value);
    Ok(format!("{vendor}, {name}, family {family}, model {model}"))
}
