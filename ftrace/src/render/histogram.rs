//! How long calls took, counted so that any number of them fits: durations below 256 ns exactly, longer ones within 1 %.
//!
//! A live trace may last for hours and see billions of calls of thousands of functions. To keep every duration would need
//! memory without bound, and a dense histogram of that precision 60 kB a function. A function's durations are alike, and
//! what is counted here are the few buckets that occur: some hundred bytes as a rule, 200 kB at the very worst.

use std::collections::BTreeMap;

/// Buckets of each power of two: a bucket is 1/128 of its durations wide at most.
const PER_POWER: u64 = 128;

/// Counts of durations in nanoseconds.
#[derive(Default, Debug)]
pub(super) struct Histogram {
    /// By the longest duration of the bucket.
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

    /// The duration that so many of a hundred calls did not exceed; none without a call.
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

/// The longest duration that falls into the same bucket.
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
