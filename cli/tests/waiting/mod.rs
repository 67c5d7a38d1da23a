//! Waiting for other processes.

use std::time::{Duration, Instant};

/// How long anything is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
