//! Converts the processor's time stamps to nanoseconds.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::trampoline::x86_64::{has_even_time_stamps, time_stamp};

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Moment {
    stamp: u64,
    time: Instant,
}

impl Moment {
    fn now() -> Moment {
        Moment { stamp: time_stamp(), time: Instant::now() }
    }
}

/// The first moment. The longer ago it is, the better the rate of time stamps is known.
static FIRST: OnceLock<Moment> = OnceLock::new();

/// The least time between the two moments that determine the rate.
const APART: Duration = Duration::from_millis(10);

/// A clock for the time since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: u64,
    /// The number of nanoseconds in 2^32 time stamps.
    scale: u64,
}

impl Clock {
    /// Stores a first moment, so that a clock that is started later need not wait.
    pub(crate) fn note() {
        FIRST.get_or_init(Moment::now);
    }

    /// Starts a clock. Returns `None` if time stamps do not run evenly and equally on all processors.
    pub(crate) fn start() -> Option<Clock> {
        if !has_even_time_stamps() {
            return None;
        }
        let first = FIRST.get_or_init(Moment::now);
        sleep(APART.saturating_sub(first.time.elapsed()));
        let last = Moment::now();
        let stamps = u128::from(last.stamp - first.stamp);
        let scale = (last.time - first.time).as_nanos().checked_shl(32)?.checked_div(stamps)?;
        Some(Clock { start: time_stamp(), scale: u64::try_from(scale).ok()? })
    }

    /// Returns the nanoseconds from the start to a time stamp, or 0 for an earlier stamp.
    pub(crate) fn nanoseconds(&self, stamp: u64) -> u64 {
        let stamps = u128::from(stamp.saturating_sub(self.start));
        u64::try_from((stamps * u128::from(self.scale)) >> 32).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, time_stamp};
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    #[test]
    fn it_goes_as_fast_as_the_systems() {
        let clock = Clock::start().expect("stamps go evenly here");
        let (first, begun) = (clock.nanoseconds(time_stamp()), Instant::now());
        sleep(Duration::from_millis(50));
        let (last, real) = (clock.nanoseconds(time_stamp()), begun.elapsed().as_nanos());
        let shown = u128::from(last - first);
        assert!(shown.abs_diff(real) < real / 100, "{shown} ns for {real} ns");
        assert_eq!(clock.nanoseconds(0), 0);
    }
}
