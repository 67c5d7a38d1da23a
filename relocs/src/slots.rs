//! GOT slots and PLT entries as data: who needs one is counted before any address is known; what they hold is written
//! when all addresses are.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Edit, Engine, Sink, Why, index, wide};

use crate::row::{Value, row};
use crate::{Advice, Error, Field, Site, Symbols};

/// Size of a GOT slot: one address.
pub(crate) const SLOT: u64 = 8;
/// Size of a PLT entry.
pub(crate) const ENTRY: u64 = 16;

/// A PLT entry, its displacement still zero. It begins with an ENDBR so that code compiled with -fcf-protection may
/// take its address and call it indirectly.
pub(crate) const PLT_ENTRY: [u8; 16] = [
    0xf3, 0x0f, 0x1e, 0xfa, // endbr64
    0xff, 0x25, 0x00, 0x00, 0x00, 0x00, // jmp *slot(%rip)
    0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, // int3
];
/// Where the displacement stands in it, and where the instruction ends that has it.
pub(crate) const DISPLACEMENT: std::ops::Range<usize> = 6..10;

/// The table entries of one symbol: numbers, from 1; 0 is none.
#[derive(Clone, Copy, Default, Debug)]
struct Entries {
    got: u32,
    plt: u32,
}

/// Which symbols of a module need a GOT slot or a PLT entry. Filled section by section before the module is laid out;
/// allocates only when the first slot is needed.
#[derive(Clone, Default, Debug)]
pub struct SlotPlan {
    /// How many symbols the module has.
    symbols: u32,
    /// By symbol; empty until the first one needs an entry.
    entries: Vec<Entries>,
    /// For each GOT slot the relocation that was the first to need it.
    got: Vec<Site>,
    /// For each PLT entry the same.
    plt: Vec<Site>,
}

impl SlotPlan {
    /// No slots yet, for a module whose symbol table has this many symbols, the null symbol included.
    #[must_use]
    pub fn new(symbols: u32) -> SlotPlan {
        SlotPlan { symbols, ..SlotPlan::default() }
    }

    /// Counts what the relocations of one section need: a GOT slot for each symbol that is referred to by way of one,
    /// and a PLT entry with a GOT slot for each symbol that is called and may be out of reach. `section` is the index of the section
    /// that holds the records. A data reference (`R_X86_64_PC32`) may not be redirected and needs nothing.
    ///
    /// Records that [`crate::apply`] refuses are passed over here.
    pub fn scan(&mut self, section: u32, relas: Records<'_, Rela>, mut may_be_far: impl FnMut(u32) -> bool) {
        for (record, rela) in (0..).zip(relas.iter()) {
            let site = || Site { section, record, raw: rela.kind, offset: rela.offset, symbol: rela.symbol };
            match row(rela.kind).map(|row| row.value) {
                Some(Value::SlotMinusPlace | Value::SlotMinusGot) => self.need_slot(site()),
                Some(Value::CallMinusPlace) if may_be_far(rela.symbol) => self.need_entry(site()),
                _ => {}
            }
        }
    }

    fn entries_of(&mut self, symbol: u32) -> Option<&mut Entries> {
        if symbol >= self.symbols {
            return None;
        }
        if self.entries.is_empty() {
            self.entries.resize(index(self.symbols.into()), Entries::default());
        }
        self.entries.get_mut(index(symbol.into()))
    }

    fn need_slot(&mut self, site: Site) {
        let next = number(self.got.len());
        if let Some(entries) = self.entries_of(site.symbol).filter(|entries| entries.got == 0) {
            entries.got = next;
            self.got.push(site);
        }
    }

    fn need_entry(&mut self, site: Site) {
        let next = number(self.plt.len());
        if let Some(entries) = self.entries_of(site.symbol).filter(|entries| entries.plt == 0) {
            entries.plt = next;
            self.plt.push(site);
            self.need_slot(site);
        }
    }

    /// Size of the GOT in bytes.
    #[must_use]
    pub fn got_size(&self) -> u64 {
        SLOT * wide(self.got.len())
    }

    /// What the address of the GOT must be a multiple of.
    #[must_use]
    pub const fn got_align(&self) -> u64 {
        SLOT
    }

    /// Size of the PLT in bytes.
    #[must_use]
    pub fn plt_size(&self) -> u64 {
        ENTRY * wide(self.plt.len())
    }

    /// What the address of the PLT must be a multiple of.
    #[must_use]
    pub const fn plt_align(&self) -> u64 {
        ENTRY
    }

    /// Gives the two tables their addresses. `got` is the address of `_GLOBAL_OFFSET_TABLE_` even if there is no slot;
    /// code of the medium and large models refers to it in any case.
    #[must_use]
    pub fn place(self, got: Addr, plt: Addr) -> Slots {
        Slots { plan: self, got, plt }
    }
}

/// The number, from 1, of the entry that comes after `len` others. No table is longer than the symbol table, whose
/// indices are 32 bits wide.
fn number(len: usize) -> u32 {
    u32::try_from(len).map_or(u32::MAX, |len| len.saturating_add(1))
}

/// A module's GOT slots and PLT entries, with their addresses.
#[derive(Clone, Default, Debug)]
pub struct Slots {
    plan: SlotPlan,
    got: Addr,
    plt: Addr,
}

impl Slots {
    /// The address of the GOT, which is what `_GLOBAL_OFFSET_TABLE_` means.
    #[must_use]
    #[inline]
    pub fn got(&self) -> Addr {
        self.got
    }

    /// The address of the PLT.
    #[must_use]
    #[inline]
    pub fn plt(&self) -> Addr {
        self.plt
    }

    /// The GOT slot of this symbol, if it has one.
    #[must_use]
    #[inline]
    pub fn slot(&self, symbol: u32) -> Option<Addr> {
        let number = self.plan.entries.get(index(symbol.into()))?.got.checked_sub(1)?;
        Some(self.got + SLOT * u64::from(number))
    }

    /// The PLT entry of this symbol, if it has one.
    #[must_use]
    #[inline]
    pub fn entry(&self, symbol: u32) -> Option<Addr> {
        let number = self.plan.entries.get(index(symbol.into()))?.plt.checked_sub(1)?;
        Some(self.plt + ENTRY * u64::from(number))
    }

    /// The symbols that have a GOT slot, in order of their slots.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = u32> {
        self.plan.got.iter().map(|site| site.symbol)
    }

    /// The symbols that have a PLT entry, in order of their entries.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = u32> {
        self.plan.plt.iter().map(|site| site.symbol)
    }

    /// Writes the address of its symbol into each GOT slot, all of which must be zero before. The slot of a symbol
    /// whose section was not kept, or whose object is not there yet, stays zero.
    ///
    /// # Errors
    /// [`Error::NoSymbol`] or [`Error::Rejected`], with the relocation that was the first to need the slot.
    pub fn fill_got<Y, S>(&self, symbols: &Y, sink: &mut S) -> Result<(), Error>
    where
        Y: Symbols + ?Sized,
        S: Sink + ?Sized,
    {
        let mut at = self.got;
        for &site in &self.plan.got {
            let symbol = symbols.symbol(site.symbol).ok_or(Error::NoSymbol { site })?;
            if symbol.kind.has_address() {
                let new = symbol.addr.get().to_le_bytes();
                put(Edit { at, old: &[0; 8], new: &new, why: why(site) }, site, sink)?;
            }
            at += SLOT;
        }
        Ok(())
    }

    /// Writes the PLT's entries over the INT3 (0xcc) that a text begins as. Each jumps through the GOT slot of its
    /// symbol.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the GOT is out of reach, or [`Error::Rejected`], with the relocation that was the first
    /// to need the entry.
    pub fn fill_plt<S: Sink + ?Sized>(&self, sink: &mut S) -> Result<(), Error> {
        let mut at = self.plt;
        for &site in &self.plan.plt {
            let slot = self.slot(site.symbol).ok_or(Error::MissingSlot { site })?;
            let value = slot - (at + wide(DISPLACEMENT.end));
            if !Field::I32.fits(value) {
                return Err(Error::overflow(site, Field::I32, value, Advice::Nearer));
            }
            let mut new = PLT_ENTRY;
            new[DISPLACEMENT].copy_from_slice(&value.to_le_bytes()[..4]);
            put(Edit { at, old: &[0xcc; 16], new: &new, why: why(site) }, site, sink)?;
            at += ENTRY;
        }
        Ok(())
    }
}

fn why(site: Site) -> Why {
    Why { engine: Engine::Slot, section: site.section, record: site.record }
}

fn put<S: Sink + ?Sized>(edit: Edit<'_>, site: Site, sink: &mut S) -> Result<(), Error> {
    sink.edit(edit).map_err(|source| Error::Rejected { site, source })
}
