//! A plan: edits sorted by address, without overlaps.

use crate::sink::check_lengths;
use crate::{Addr, Edit, EditOrigin, Rejected, Sink, wide};

/// Edits sorted by address, without overlaps. As a sink, an `EditSet` takes edits in any order and refuses an edit that
/// overlaps an earlier one.
#[derive(Clone, Default, Debug)]
pub struct EditSet {
    /// Sorted by `at`.
    entries: Vec<PlannedEdit>,
    /// `old` and then `new` of each entry, in the order in which the edits were added.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct PlannedEdit {
    at: Addr,
    /// The index of `old` in `bytes`.
    start: usize,
    len: usize,
    why: EditOrigin,
}

impl PlannedEdit {
    fn end(&self) -> Addr {
        self.at + wide(self.len)
    }
}

impl EditSet {
    /// Makes a set without edits.
    #[must_use]
    pub const fn new() -> EditSet {
        EditSet { entries: Vec::new(), bytes: Vec::new() }
    }

    /// Returns the number of edits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the edits in order of their addresses.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Edit<'_>> {
        self.entries.iter().map(|entry| self.of(entry))
    }

    /// Returns the edit that begins at `at`. Allocates nothing and takes no lock, so a signal handler may call this.
    #[must_use]
    pub fn find(&self, at: Addr) -> Option<Edit<'_>> {
        let place = self.entries.binary_search_by_key(&at, |entry| entry.at).ok()?;
        Some(self.of(&self.entries[place]))
    }

    /// Returns the edit that covers `at` with a byte other than its first.
    #[must_use]
    pub fn across(&self, at: Addr) -> Option<Edit<'_>> {
        let before = self.entries.partition_point(|entry| entry.at < at).checked_sub(1)?;
        Some(&self.entries[before]).filter(|entry| entry.end() > at).map(|entry| self.of(entry))
    }

    fn of(&self, entry: &PlannedEdit) -> Edit<'_> {
        let (old, new) = self.bytes[entry.start..entry.start + 2 * entry.len].split_at(entry.len);
        Edit { at: entry.at, old, new, why: entry.why }
    }

    /// Reserves memory for `edits` more edits of `len` bytes each.
    pub fn reserve(&mut self, edits: usize, len: usize) {
        self.entries.reserve(edits);
        self.bytes.reserve(edits.saturating_mul(2 * len));
    }

    /// Removes all edits and keeps the memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes.clear();
    }
}

impl Sink for EditSet {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        check_lengths(&edit)?;
        // Planners mostly add edits by rising addresses, so the place is nearly always the end.
        let place = match self.entries.last() {
            Some(last) if last.at < edit.at => self.entries.len(),
            _ => self.entries.partition_point(|entry| entry.at < edit.at),
        };
        let before = place.checked_sub(1).map(|i| self.entries[i]).filter(|entry| entry.end() > edit.at);
        let behind = self.entries.get(place).copied().filter(|entry| entry.at < edit.end());
        if let Some(other) = before.or(behind) {
            return Err(Rejected::Collision { at: edit.at, first: other.why, second: edit.why });
        }
        let entry = PlannedEdit { at: edit.at, start: self.bytes.len(), len: edit.new.len(), why: edit.why };
        self.bytes.extend_from_slice(edit.old);
        self.bytes.extend_from_slice(edit.new);
        self.entries.insert(place, entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::EditSet;
    use crate::{Addr, Edit, EditOrigin, Engine, Rejected, Sink};

    fn push(set: &mut EditSet, at: u64, len: usize, record: u32) -> Result<(), Rejected> {
        let why = EditOrigin { engine: Engine::Relocation, section: 1, record };
        set.edit(Edit { at: Addr::new(at), old: &[0; 16][..len], new: &[1; 16][..len], why })
    }

    #[test]
    fn edits_come_back_sorted_with_their_bytes() {
        let mut set = EditSet::new();
        for (record, at) in [(0, 0x30), (1, 0x10), (2, 0x20)] {
            push(&mut set, at, 4, record).unwrap();
        }
        let seen: Vec<_> = set.iter().map(|edit| (edit.at.get(), edit.why.record, edit.old[0], edit.new[3])).collect();
        assert_eq!(seen, [(0x10, 1, 0, 1), (0x20, 2, 0, 1), (0x30, 0, 0, 1)]);
    }

    #[test]
    fn an_overlap_is_refused_and_names_both() {
        let mut set = EditSet::new();
        push(&mut set, 0x10, 4, 0).unwrap();
        push(&mut set, 0x18, 4, 1).unwrap();
        for (at, len, first) in [(0x10, 4, 0), (0x13, 1, 0), (0x0d, 4, 0), (0x16, 8, 1), (0x0c, 16, 0)] {
            let refused = push(&mut set, at, len, 9).unwrap_err();
            let Rejected::Collision { first: found, second, .. } = refused else { panic!("{refused}") };
            assert_eq!((found.record, second.record), (first, 9), "{at:#x}+{len}");
        }
        push(&mut set, 0x14, 4, 2).unwrap();
        assert_eq!(set.len(), 3);
    }
}
