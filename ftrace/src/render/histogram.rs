//! Counts call durations in limited memory: durations below 256 ns exactly, longer ones within 1 %.
//!
//! A live trace may run for hours and record billions of calls of thousands of functions. Storing every duration would
//! need unlimited memory, and a dense histogram of that precision 60 kB for each function. The durations of one
//! function are similar, so only the few buckets that occur are stored: usually some hundred bytes, and 200 kB in the
//! worst case.

use std::collections::BTreeMap;

/// The number of buckets for each power of two: a bucket's width is at most 1/128 of its durations.
const PER_POWER: u64 = 128;

/// The counts of durations in nanoseconds.
#[derive(Default, Debug)]
pub(super) struct Histogram {
    /// The counts by the longest duration of each bucket.
    buckets: BTreeMap<u64, u64>,
    count: u64,
    longest: u64,
}

impl Histogram {
    pub(super) fn add(&mut self, ns: u64) {
        *self.buckets.entry(bucket(ns)).or_default() += 1;
        self.count += 1;
        self.longest = self.longest.max(ns);
    }

    /// Returns the duration that this percentage of calls did not exceed. `None` without calls.
    pub(super) fn percentile(&self, percent: u64) -> Option<u64> {
        let rank = (u128::from(self.count) * u128::from(percent)).div_ceil(100);
        let mut seen = 0;
        let reached = self.buckets.iter().find(|(_, count)| {
            seen += u128::from(**count);
            seen >= rank
        });
        reached.map(|(longest, _)| (*longest).min(self.longest))
    }
}

/// Returns the longest duration in the same bucket.
fn bucket(ns: u64) -> u64 {
    let width = (ns / PER_POWER).checked_ilog2().map_or(1, |power| 1 << power);
    ns | (width - 1)
}

#[cfg(test)]
mod tests {
    use super::{Histogram, bucket};

    #[test]
    fn buckets_are_as_wide_as_they_say() {
        for ns in 0..256 {
            assert_eq!(bucket(ns), ns);
        }
        for power in 8..64 {
            let first = 1_u64 << power;
            let last = first - 1 + first;
            assert_eq!((bucket(first - 1), bucket(last)), (first - 1, last));
            for ns in [first, first + 1, first + first / 3, last - 1] {
                let over = bucket(ns) - ns;
                assert!(over <= ns / 128, "{ns} counts as {}", bucket(ns));
            }
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_durations() {
        let mut seed = 1_u64;
        for round in 0..200 {
            let mut durations: Vec<u64> = (0..1 + round * 7)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    seed >> (20 + seed % 43)
                })
                .collect();
            let mut histogram = Histogram::default();
            durations.iter().for_each(|ns| histogram.add(*ns));
            durations.sort_unstable();
            for percent in [1, 50, 99, 100] {
                let rank = (durations.len() * percent).div_ceil(100);
                let exact = durations[rank - 1];
                let told = histogram.percentile(u64::try_from(percent).unwrap()).unwrap();
                assert!(told >= exact && told - exact <= exact / 128, "p{percent} of {exact} is told as {told}");
            }
            assert_eq!(histogram.percentile(100), durations.last().copied());
        }
        assert_eq!(Histogram::default().percentile(50), None);
    }
}
