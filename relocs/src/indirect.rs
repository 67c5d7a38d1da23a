//! Indirect functions (STT_GNU_IFUNC): the symbol's value is a resolver, which returns the function that is meant. All
//! references to it go to a PLT entry of its own, so that its address is one and the same before and after; the slot
//! behind the entry is filled when resolvers can run.

use modload_edit::{Addr, Edit, Engine, Sink, Why, wide};

use crate::slots::{DISPLACEMENT, ENTRY, PLT_ENTRY, SLOT};
use crate::{Advice, Error, Field, Site};

/// R_X86_64_PC32: what the displacement of an entry's jump is.
const PC32: u32 = 2;
/// Where the first INT3 stands in an entry, behind its jump.
const TRAP: u64 = 10;

/// The indirect functions that a module defines, in the order of their entries.
#[derive(Clone, Default, Debug)]
pub struct IndirectPlan {
    /// By their indices in the symbol table.
    symbols: Vec<u32>,
}

impl IndirectPlan {
    /// Adds the symbol at this index, which must be higher than those before it.
    pub fn add(&mut self, symbol: u32) {
        debug_assert!(self.symbols.last().is_none_or(|last| *last < symbol));
        self.symbols.push(symbol);
    }

    /// The symbols, in the order of their entries.
    #[must_use]
    pub fn symbols(&self) -> &[u32] {
        &self.symbols
    }

    /// Size of the entries in bytes.
    #[must_use]
    pub fn plt_size(&self) -> u64 {
        ENTRY * wide(self.symbols.len())
    }

    /// What the address of the entries must be a multiple of.
    #[must_use]
    pub const fn plt_align(&self) -> u64 {
        ENTRY
    }

    /// Size of the slots in bytes.
    #[must_use]
    pub fn slots_size(&self) -> u64 {
        SLOT * wide(self.symbols.len())
    }

    /// What the address of the slots must be a multiple of.
    #[must_use]
    pub const fn slots_align(&self) -> u64 {
        SLOT
    }

    /// Distance of a symbol's entry from the first one.
    #[must_use]
    pub fn entry(&self, symbol: u32) -> Option<u64> {
        self.symbols.binary_search(&symbol).ok().map(|at| ENTRY * wide(at))
    }

    /// Distance of a symbol's slot from the first one.
    #[must_use]
    pub fn slot(&self, symbol: u32) -> Option<u64> {
        self.symbols.binary_search(&symbol).ok().map(|at| SLOT * wide(at))
    }

    /// Writes the entries over the INT3 (0xcc) that a text begins as, each jumping through its slot. `section` is the
    /// index of the symbol table; the edits' [`Why`] says it, and the symbol as the record.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the slots are out of reach, or [`Error::Rejected`].
    pub fn fill_plt<S: Sink + ?Sized>(&self, plt: Addr, slots: Addr, section: u32, sink: &mut S) -> Result<(), Error> {
        for (entry, slot, site) in self.sites(plt, slots, section) {
            let value = slot - (entry + wide(DISPLACEMENT.end));
            if !Field::I32.fits(value) {
                return Err(Error::overflow(site, Field::I32, value, Advice::Nearer));
            }
            let mut new = PLT_ENTRY;
            new[DISPLACEMENT].copy_from_slice(&value.to_le_bytes()[..4]);
            put(Edit { at: entry, old: &[0xcc; 16], new: &new, why: why(site) }, site, sink)?;
        }
        Ok(())
    }

    /// Writes into each slot, which must be zero before, the address of an INT3 of its entry: whoever calls the
    /// function before it is resolved traps there.
    ///
    /// # Errors
    /// [`Error::Rejected`].
    pub fn fill_slots<S: Sink + ?Sized>(
        &self,
        plt: Addr,
        slots: Addr,
        section: u32,
        sink: &mut S,
    ) -> Result<(), Error> {
        for (entry, slot, site) in self.sites(plt, slots, section) {
            let new = (entry + TRAP).get().to_le_bytes();
            put(Edit { at: slot, old: &[0; 8], new: &new, why: why(site) }, site, sink)?;
        }
        Ok(())
    }

    /// Entry, slot, and whom to blame.
    fn sites(&self, plt: Addr, slots: Addr, section: u32) -> impl Iterator<Item = (Addr, Addr, Site)> {
        (0..).zip(&self.symbols).map(move |(at, &symbol)| {
            let offset = ENTRY * at;
            (plt + offset, slots + SLOT * at, Site { section, record: symbol, raw: PC32, offset, symbol })
        })
    }
}

fn why(site: Site) -> Why {
    Why { engine: Engine::Indirect, section: site.section, record: site.record }
}

fn put<S: Sink + ?Sized>(edit: Edit<'_>, site: Site, sink: &mut S) -> Result<(), Error> {
    sink.edit(edit).map_err(|source| Error::Rejected { site, source })
}
