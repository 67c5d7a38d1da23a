//! A record of all edits, so that two engines overwrite the same bytes only where a rule allows this.

use std::collections::BTreeSet;

use crate::order::may_follow;
use crate::{Addr, Code, Edit, EditOrigin, Rejected, Sink, wide};

/// Passes edits on and keeps a copy of each. An edit of bytes that another edit has written is refused, unless
/// [`crate::YIELDS`] lists the pair of their engines.
#[derive(Debug)]
pub struct Ledger<'c, C> {
    code: &'c mut C,
    edits: Edits,
}

/// Edits in the order in which they were made. A later edit may have overwritten an earlier edit.
#[derive(Clone, Default, Debug)]
pub struct Edits {
    entries: Vec<LedgerEntry>,
    /// `old` and then `new` of each entry.
    bytes: Vec<u8>,
    /// The numbers of the entries, sorted by address.
    by_address: BTreeSet<(Addr, usize)>,
    /// The length of the longest edit.
    longest: u64,
}

#[derive(Clone, Copy, Debug)]
struct LedgerEntry {
    at: Addr,
    start: usize,
    len: usize,
    why: EditOrigin,
}

impl<'c, C: Code> Ledger<'c, C> {
    /// Starts a ledger without edits.
    pub fn new(code: &'c mut C) -> Ledger<'c, C> {
        Ledger { code, edits: Edits::default() }
    }

    /// Continues the ledger that ended with `edits`.
    pub fn resume(code: &'c mut C, edits: Edits) -> Ledger<'c, C> {
        Ledger { code, edits }
    }

    /// Returns the code that is edited.
    #[must_use]
    pub fn code(&self) -> &C {
        self.code
    }

    /// Returns the edits so far.
    #[must_use]
    pub fn edits(&self) -> &Edits {
        &self.edits
    }

    /// Ends the ledger and returns all edits.
    #[must_use]
    pub fn close(self) -> Edits {
        self.edits
    }
}

impl Edits {
    fn get(&self, number: usize) -> Edit<'_> {
        let LedgerEntry { at, start, len, why } = self.entries[number];
        let (old, new) = self.bytes[start..start + 2 * len].split_at(len);
        Edit { at, old, new, why }
    }

    /// Returns all edits, in the order in which they were made.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Edit<'_>> {
        (0..self.entries.len()).map(|number| self.get(number))
    }

    /// Returns the edits that wrote any of the `len` bytes from `at` on, in the order in which they were made.
    #[must_use]
    pub fn touching(&self, at: Addr, len: u64) -> Vec<Edit<'_>> {
        let from = Addr::new(at.get().saturating_sub(self.longest));
        let near = self.by_address.range((from, 0)..).take_while(|(start, _)| *start < at + len);
        let mut numbers: Vec<usize> = near
            .filter(|(start, number)| *start + wide(self.entries[*number].len) > at)
            .map(|(_, number)| *number)
            .collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| self.get(number)).collect()
    }

    /// Records an edit that has been made.
    fn enter(&mut self, edit: &Edit<'_>) {
        let entry = LedgerEntry { at: edit.at, start: self.bytes.len(), len: edit.new.len(), why: edit.why };
        self.bytes.extend_from_slice(edit.old);
        self.bytes.extend_from_slice(edit.new);
        self.by_address.insert((edit.at, self.entries.len()));
        self.longest = self.longest.max(wide(edit.new.len()));
        self.entries.push(entry);
    }
}

impl<C: Code> Sink for Ledger<'_, C> {
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        let earlier = self.edits.touching(edit.at, wide(edit.new.len()));
        if let Some(first) = earlier.iter().rfind(|first| !may_follow(first.why.engine, edit.why.engine)) {
            let bytes = |edit: &Edit<'_>| (edit.at, edit.new.to_vec());
            return Err(Rejected::Clash {
                first: first.why,
                first_bytes: bytes(first),
                second: edit.why,
                second_bytes: bytes(&edit),
            });
        }
        self.code.edit(edit)?;
        self.edits.enter(&edit);
        Ok(())
    }
}

impl<C: Code> Code for Ledger<'_, C> {
    fn bytes(&self, at: Addr, len: usize) -> Option<&[u8]> {
        self.code.bytes(at, len)
    }

    fn text(&self, at: Addr, len: usize) -> Option<&[u8]> {
        self.code.text(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::Ledger;
    use crate::{Addr, CodeBuffers, Edit, EditOrigin, Engine, PieceKind, Rejected, Sink};

    fn edit(engine: Engine, at: u64, old: &'static [u8], new: &'static [u8]) -> Edit<'static> {
        Edit { at: Addr::new(at), old, new, why: EditOrigin { engine, section: 3, record: 1 } }
    }

    #[test]
    fn a_relocation_comes_before_an_alternative_and_not_after_it() {
        let mut space = CodeBuffers::default();
        space.add(Addr::new(0x1000), PieceKind::Text, vec![0xe8, 0, 0, 0, 0, 0xc3]).unwrap();
        let mut ledger = Ledger::new(&mut space);
        ledger.edit(edit(Engine::Relocation, 0x1001, &[0; 4], &[1, 2, 3, 4])).unwrap();
        let nop = &[0x0f, 0x1f, 0x44, 0x00, 0x00]; // nopl 0x0(%rax,%rax,1)
        ledger.edit(edit(Engine::Alternative, 0x1000, &[0xe8, 1, 2, 3, 4], nop)).unwrap();
        let late = ledger.edit(edit(Engine::Relocation, 0x1001, &[0x1f, 0x44, 0, 0], &[9; 4])).unwrap_err();
        assert!(matches!(late, Rejected::Clash { .. }), "{late}");
        let said = late.to_string();
        assert!(said.contains("nopl (%rax,%rax)") && said.contains("alternative 1 of section 3"), "{said}");
        let edits = ledger.close();
        let touching = edits.touching(Addr::new(0x1004), 1);
        let engines: Vec<_> = touching.iter().map(|edit| edit.why.engine).collect();
        assert_eq!(engines, [Engine::Relocation, Engine::Alternative]);
        assert!(edits.touching(Addr::new(0x1005), 1).is_empty());
    }
}
