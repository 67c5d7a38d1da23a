//! What [`crate::apply`] did, in numbers.

use std::ops::AddAssign;

use modload_edit::index;

use crate::ROWS;
use crate::row::COUNT;

/// How many relocations of each kind there were, and what became of some. Counts of several sections can be added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counts {
    /// By relocation number.
    by_row: [u32; COUNT],
    /// Left alone because the section of their symbol was not kept.
    pub skipped: u32,
    /// Written as a reference to the symbol itself in place of its GOT slot.
    pub relaxed: u32,
    /// Calls that go through a PLT entry because the symbol is out of reach.
    pub through_plt: u32,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts { by_row: [0; COUNT], skipped: 0, relaxed: 0, through_plt: 0 }
    }
}

impl Counts {
    /// One more of the relocation with this number.
    #[inline]
    pub(crate) fn add_one(&mut self, raw: u32) {
        if let Some(count) = self.by_row.get_mut(index(raw.into())) {
            *count += 1;
        }
    }

    /// How many there were of all kinds, those that were skipped included.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_row.iter().copied().map(u64::from).sum()
    }

    /// Name and count of each kind that occurred, in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        ROWS.iter().zip(self.by_row).filter(|&(_, count)| count != 0).map(|(row, count)| (row.name, count))
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        for (count, more) in self.by_row.iter_mut().zip(other.by_row) {
            *count += more;
        }
        self.skipped += other.skipped;
        self.relaxed += other.relaxed;
        self.through_plt += other.through_plt;
    }
}
