//! Longer runs of `loader/tests/mutants.rs`.

use std::time::{Duration, Instant};

use crate::Result;
use crate::kernel;
use crate::options::Options;
use crate::process::{cargo, run};

/// Runs the test once, and repeats it until the time is over.
pub(crate) fn run_test(options: &Options) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(options.number("seconds")?);
    let first: u64 = options.number("seed")?;
    let kernel = kernel::folder().inspect_err(|error| eprintln!("without Debian's modules: {error}")).ok();
    for seed in first.. {
        let words = ["test", "--release", "--locked", "-p", "modload-loader", "--test", "mutants", "--", "--nocapture"];
        let mut test = cargo();
        test.args(words).env("MODLOAD_MUTANTS", options.text("count")).env("MODLOAD_SEED", seed.to_string());
        run(test.envs(kernel.iter().map(|folder| ("MODLOAD_KERNEL", folder))))?;
        if Instant::now() >= end {
            break;
        }
    }
    Ok(())
}
