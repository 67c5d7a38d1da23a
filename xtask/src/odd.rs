//! Longer runs of `tests/tests/odd_objects`: valid but unusual objects, compared with the output of GNU ld and exec.

use crate::Result;
use crate::options::Options;
use crate::process::{cargo, run};

/// Runs the test once.
pub(crate) fn run_test(options: &Options) -> Result<()> {
    // Parsed here, so that a mistake is reported before the build.
    let (count, seed): (u64, u64) = (options.number("count")?, options.number("seed")?);
    // Without --release: most of the time goes to GNU ld, and `cargo test` has built this already.
    let words = ["test", "--locked", "-p", "modload-tests", "--test", "odd_objects", "--", "--nocapture"];
    run(cargo().args(words).env("MODLOAD_ODD", count.to_string()).env("MODLOAD_SEED", seed.to_string()))
}
