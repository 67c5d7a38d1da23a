//! Statistics of [`crate::apply`].

use std::ops::AddAssign;

use modload_edit::index;

use crate::ROWS;
use crate::x86_64::COUNT;

/// The number of relocations of each kind, and of those with a special outcome. Counts of several sections can be
/// added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelocCounts {
    /// The number of relocations by relocation number.
    by_row: [u32; COUNT],
    /// Relocations that were not applied because the section of their symbol was discarded.
    pub skipped: u32,
    /// Relocations that refer to the symbol itself instead of its GOT slot.
    pub relaxed: u32,
    /// Calls that use a PLT entry because the symbol is out of reach.
    pub through_plt: u32,
    /// Whether the last record was applied together with the next one, the call in the same sequence.
    pub(crate) took_next: bool,
}

impl Default for RelocCounts {
    fn default() -> RelocCounts {
        RelocCounts { by_row: [0; COUNT], skipped: 0, relaxed: 0, through_plt: 0, took_next: false }
    }
}

impl RelocCounts {
    /// Counts one more relocation of this number.
    #[inline]
    pub(crate) fn add_one(&mut self, raw: u32) {
        if let Some(count) = self.by_row.get_mut(index(raw.into())) {
            *count += 1;
        }
    }

    /// Returns the number of all relocations, including skipped ones.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_row.iter().copied().map(u64::from).sum()
    }

    /// Returns the name and the count of each kind that occurred, in order of relocation numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        ROWS.iter().zip(self.by_row).filter(|&(_, count)| count != 0).map(|(row, count)| (row.name, count))
    }
}

impl AddAssign for RelocCounts {
    fn add_assign(&mut self, other: RelocCounts) {
        for (count, more) in self.by_row.iter_mut().zip(other.by_row) {
            *count += more;
        }
        self.skipped += other.skipped;
        self.relaxed += other.relaxed;
        self.through_plt += other.through_plt;
    }
}
