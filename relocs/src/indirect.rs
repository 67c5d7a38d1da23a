//! Indirect functions (STT_GNU_IFUNC). The value of such a symbol is the address of a resolver, which returns the
//! address of the function to call. All references to the symbol use a PLT entry, so that the symbol's address never
//! changes. The slot of the entry is filled once the resolver can run.

use modload_edit::{Addr, Edit, EditOrigin, Engine, Sink, wide};

use crate::slots::SLOT;
use crate::x86_64::{DISPLACEMENT_KIND, ENTRY, TRAP, UNWRITTEN, entry};
use crate::{RelocAdvice, RelocError, RelocField, RelocSite};

/// The indirect functions that a module defines, in the order of their entries.
#[derive(Clone, Default, Debug)]
pub struct IndirectPlan {
    /// The indices of the functions in the symbol table.
    symbols: Vec<u32>,
}

impl IndirectPlan {
    /// Adds the symbol at this index, which must be higher than all earlier indices.
    pub fn add(&mut self, symbol: u32) {
        debug_assert!(self.symbols.last().is_none_or(|last| *last < symbol));
        self.symbols.push(symbol);
    }

    /// Returns the symbols, in the order of their entries.
    #[must_use]
    pub fn symbols(&self) -> &[u32] {
        &self.symbols
    }

    /// Returns the size of all entries in bytes.
    #[must_use]
    pub fn plt_size(&self) -> u64 {
        ENTRY * wide(self.symbols.len())
    }

    /// Returns the alignment of the entries.
    #[must_use]
    pub const fn plt_align(&self) -> u64 {
        ENTRY
    }

    /// Returns the size of all slots in bytes.
    #[must_use]
    pub fn slots_size(&self) -> u64 {
        SLOT * wide(self.symbols.len())
    }

    /// Returns the alignment of the slots.
    #[must_use]
    pub const fn slots_align(&self) -> u64 {
        SLOT
    }

    /// Returns the distance from the first entry to the entry of a symbol.
    #[must_use]
    pub fn entry(&self, symbol: u32) -> Option<u64> {
        self.symbols.binary_search(&symbol).ok().map(|at| ENTRY * wide(at))
    }

    /// Returns the distance from the first slot to the slot of a symbol.
    #[must_use]
    pub fn slot(&self, symbol: u32) -> Option<u64> {
        self.symbols.binary_search(&symbol).ok().map(|at| SLOT * wide(at))
    }

    /// Writes the entries over the INT3 (0xcc) with which text memory is filled initially. Each entry jumps through its
    /// slot. `section` is the index of the symbol table. The [`EditOrigin`] of the edits names this section, and the
    /// symbol as the record.
    ///
    /// # Errors
    /// [`RelocError::Overflow`] if the slots are out of reach, or [`RelocError::Rejected`].
    pub fn fill_plt<S: Sink + ?Sized>(
        &self,
        plt: Addr,
        slots: Addr,
        section: u32,
        sink: &mut S,
    ) -> Result<(), RelocError> {
        for (at, slot, site) in self.sites(plt, slots, section) {
            let far = |value| RelocError::overflow(site, RelocField::I32, value, RelocAdvice::Nearer);
            let new = entry(at, slot).map_err(far)?;
            put(Edit { at, old: &UNWRITTEN, new: &new, why: why(site) }, site, sink)?;
        }
        Ok(())
    }

    /// Writes the address of an INT3 of its entry into each slot, which must be zero before. A call of the function
    /// before it is resolved traps there.
    ///
    /// # Errors
    /// [`RelocError::Rejected`].
    pub fn fill_slots<S: Sink + ?Sized>(
        &self,
        plt: Addr,
        slots: Addr,
        section: u32,
        sink: &mut S,
    ) -> Result<(), RelocError> {
        for (entry, slot, site) in self.sites(plt, slots, section) {
            let new = (entry + TRAP).get().to_le_bytes();
            put(Edit { at: slot, old: &[0; 8], new: &new, why: why(site) }, site, sink)?;
        }
        Ok(())
    }

    /// Returns each entry, its slot and its origin for errors.
    fn sites(&self, plt: Addr, slots: Addr, section: u32) -> impl Iterator<Item = (Addr, Addr, RelocSite)> {
        (0..).zip(&self.symbols).map(move |(at, &symbol)| {
            let offset = ENTRY * at;
            (
                plt + offset,
                slots + SLOT * at,
                RelocSite { section, record: symbol, raw: DISPLACEMENT_KIND, offset, symbol },
            )
        })
    }
}

fn why(site: RelocSite) -> EditOrigin {
    EditOrigin { engine: Engine::Indirect, section: site.section, record: site.record }
}

fn put<S: Sink + ?Sized>(edit: Edit<'_>, site: RelocSite, sink: &mut S) -> Result<(), RelocError> {
    sink.edit(edit).map_err(|source| RelocError::Rejected { site, source })
}
