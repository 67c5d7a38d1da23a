//! Longer runs of the stress test in `text/tests/poke.rs`.

use std::time::{Duration, Instant};

use modload_tests::{Fired, Until, fire};
use modload_text::TrapMask;

use crate::Result;
use crate::options::Options;

/// The ways of poking, with their names.
const WAYS: [(&str, TrapMask); 2] = [("traps", TrapMask::Trusted), ("held", TrapMask::Held)];
/// How long the same sites are poked.
const ROUND: Duration = Duration::from_secs(60);

/// Prints a line per round, and one for all rounds. A wrong call ends this process.
pub(crate) fn under_fire(options: &Options) -> Result<()> {
    let wanted = options.text("way");
    let found = WAYS.iter().find(|(name, _)| *name == wanted);
    let (way, mask) = found.ok_or_else(|| format!("way is traps or held, not {wanted:?}"))?;
    let end = Instant::now() + Duration::from_secs(options.number("seconds")?);
    let mut all = Fired::default();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let fired = fire(*mask, Until::After(left.min(ROUND)));
        eprintln!("{way}: {fired}");
        all.add(&fired);
    }
    println!("{way}: {all}");
    Ok(())
}
