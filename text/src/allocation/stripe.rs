//! The free ranges of a stripe. Pure bookkeeping: no function here accesses the memory of the stripe.

use std::collections::{BTreeMap, BTreeSet};

/// A stripe of `len` bytes, by offsets from its start, whose address is `start`. [`Stripe::take`] takes the smallest
/// free range that fits, and the lowest of equal ones, so that a freed module's place is reused before new pages are.
#[derive(Debug)]
pub(crate) struct Stripe {
    /// The address of the first byte: an alignment above a page applies to the address, not to the offset.
    start: u64,
    len: u64,
    /// The free ranges: start to length; no two touch.
    by_start: BTreeMap<u64, u64>,
    /// The same ranges as (length, start).
    by_len: BTreeSet<(u64, u64)>,
    /// The offset from which on no byte has been used and no page was faulted in.
    touched: u64,
    used: u64,
}

/// A range of a stripe that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    pub(crate) start: u64,
    /// The range that has to be faulted in before the taken range is used, if there is one: start and end.
    pub(crate) fault_in: Option<(u64, u64)>,
}

impl Stripe {
    pub(crate) fn new(start: u64, len: u64) -> Stripe {
        Stripe { start, len, by_start: [(0, len)].into(), by_len: [(len, 0)].into(), touched: 0, used: 0 }
    }

    /// Takes `len` bytes, whose address is a multiple of `align`; the stripe is faulted in by steps of `step`.
    pub(crate) fn take(&mut self, len: u64, align: u64, step: u64) -> Option<Taken> {
        let fits = |&(free, start): &(u64, u64)| {
            let at = self.start.checked_add(start)?.checked_next_multiple_of(align)? - self.start;
            let end = at.checked_add(len)?;
            (end <= start + free).then_some((start, free, at, end))
        };
        let (start, free, at, end) = self.by_len.range((len, 0)..).find_map(fits)?;
        self.remove(start, free);
        self.insert(start, at - start);
        self.insert(end, start + free - end);
        self.used += len;
        let fault_in = (end > self.touched).then(|| (self.touched, end.next_multiple_of(step).min(self.len)));
        Some(Taken { start: at, fault_in })
    }

    /// Records that all pages before `to` have been faulted in.
    pub(crate) fn touched_to(&mut self, to: u64) {
        self.touched = to;
    }

    /// Frees a range.
    pub(crate) fn give_back(&mut self, start: u64, len: u64) {
        self.used -= len;
        let (mut from, mut to) = (start, start + len);
        if let Some((&before, &before_len)) = self.by_start.range(..start).next_back()
            && before + before_len == start
        {
            self.remove(before, before_len);
            from = before;
        }
        if let Some(&behind_len) = self.by_start.get(&to) {
            self.remove(to, behind_len);
            to += behind_len;
        }
        self.insert(from, to - from);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn touched(&self) -> u64 {
        self.touched
    }

    pub(crate) fn free_ranges(&self) -> Vec<(u64, u64)> {
        self.by_start.iter().map(|(&start, &len)| (start, len)).collect()
    }

    fn insert(&mut self, start: u64, len: u64) {
        if len != 0 {
            self.by_start.insert(start, len);
            self.by_len.insert((len, start));
        }
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use super::{Stripe, Taken};

    #[test]
    fn ranges_are_packed_aligned_and_merged_again() {
        let mut stripe = Stripe::new(0, 0x10000);
        let mut take = |len, align| stripe.take(len, align, 0x1000).map(|taken| taken.start);
        let taken = [take(10, 1), take(100, 64), take(7, 16), take(0x20000, 1)];
        assert_eq!(taken, [Some(0), Some(64), Some(16), None], "the gap before an aligned range is used");
        assert_eq!(take(20, 8), Some(24));
        for (start, len) in [(64, 100), (0, 10), (24, 20), (16, 7)] {
            stripe.give_back(start, len);
        }
        assert_eq!((stripe.free_ranges(), stripe.used()), (vec![(0, 0x10000)], 0));
    }

    #[test]
    fn the_address_is_aligned_and_not_the_offset() {
        let mut stripe = Stripe::new(0x7000, 0x40_0000);
        for align in [0x1000, 0x2000, 0x1_0000, 0x20_0000] {
            let taken = stripe.take(16, align, 0x1000).unwrap();
            assert_eq!((0x7000 + taken.start) % align, 0, "{taken:?}");
        }
    }

    #[test]
    fn the_smallest_hole_that_fits_is_taken() {
        let mut stripe = Stripe::new(0, 0x1000);
        let starts: Vec<_> = (0..6).map(|_| stripe.take(0x100, 1, 0x1000).unwrap().start).collect();
        stripe.give_back(starts[0], 0x100);
        stripe.give_back(starts[1], 0x100);
        stripe.give_back(starts[4], 0x100);
        assert_eq!(stripe.take(0x80, 1, 0x1000).unwrap().start, starts[4]);
        assert_eq!(stripe.take(0x180, 1, 0x1000).unwrap().start, starts[0]);
    }

    #[test]
    fn pages_are_faulted_in_once_and_in_steps() {
        let mut stripe = Stripe::new(0, 0x3800);
        assert_eq!(stripe.take(16, 1, 0x1000), Some(Taken { start: 0, fault_in: Some((0, 0x1000)) }));
        stripe.touched_to(0x1000);
        assert_eq!(stripe.take(16, 1, 0x1000), Some(Taken { start: 16, fault_in: None }));
        assert_eq!(stripe.take(0x1000, 1, 0x1000), Some(Taken { start: 32, fault_in: Some((0x1000, 0x2000)) }));
        stripe.touched_to(0x2000);
        stripe.give_back(32, 0x1000);
        assert_eq!(stripe.take(0x1000, 1, 0x1000).unwrap().fault_in, None);
        assert_eq!(stripe.take(0x2000, 1, 0x1000).unwrap().fault_in, Some((0x2000, 0x3800)));
    }

    #[test]
    fn impossible_alignments_are_refused() {
        let mut stripe = Stripe::new(0, 0x1000);
        stripe.take(1, 1, 0x1000).unwrap();
        assert_eq!(stripe.take(1, 1 << 63, 0x1000), None);
        assert_eq!(stripe.take(u64::MAX, 1, 0x1000), None);
    }
}
