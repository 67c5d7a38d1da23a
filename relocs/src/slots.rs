//! GOT slots and PLT entries. They are counted before any address is known, and written once all addresses are known.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Edit, EditOrigin, Engine, Sink, index, wide};

use crate::row::RelocFormula;
use crate::x86_64::{ENTRY, UNWRITTEN, entry, row};
use crate::{RelocAdvice, RelocError, RelocField, RelocSite, RelocSymbols, TlsBlocks};

/// The size of a GOT slot: one address.
pub(crate) const SLOT: u64 = 8;
/// The size of a pair or a descriptor of a thread-local variable: two addresses.
const TLS_SLOT: u64 = 16;

/// The numbers of a symbol's GOT slot and PLT entry, from 1. 0 if the symbol has none.
#[derive(Clone, Copy, Default, Debug)]
struct Entries {
    got: u32,
    plt: u32,
}

/// The numbers of a thread-local variable's pair and descriptor, from 1; whether code needs a fixed offset; and whether
/// any relocation accesses the symbol as a thread-local variable.
#[derive(Clone, Copy, Default, Debug)]
struct TlsEntries {
    pair: u32,
    descriptor: u32,
    fixed: bool,
    accessed: bool,
}

/// The symbols of a module that need a GOT slot or a PLT entry. Filled section by section before the module is laid
/// out. The first needed slot causes the first allocation.
#[derive(Clone, Default, Debug)]
pub struct SlotPlan {
    /// The number of symbols of the module.
    symbols: u32,
    /// By symbol index. Empty until the first symbol needs an entry.
    entries: Vec<Entries>,
    /// The relocation that first needed each GOT slot.
    got: Vec<RelocSite>,
    /// The relocation that first needed each PLT entry.
    plt: Vec<RelocSite>,
    /// By symbol index. Empty until the first access to a thread-local variable.
    tls: Vec<TlsEntries>,
    /// The relocation that first needed the module's own pair.
    own_pair: Option<RelocSite>,
    /// The relocation that first needed each pair.
    pairs: Vec<RelocSite>,
    /// The relocation that first needed each descriptor.
    descriptors: Vec<RelocSite>,
    /// The first relocation of each variable that needs a fixed offset from the thread pointer.
    fixed: Vec<RelocSite>,
}

impl SlotPlan {
    /// Starts an empty plan for a module whose symbol table has this many symbols, including the null symbol.
    #[must_use]
    pub fn new(symbols: u32) -> SlotPlan {
        SlotPlan { symbols, ..SlotPlan::default() }
    }

    /// Counts the slots that the relocations of one section need: a GOT slot for each symbol that is used by its slot,
    /// and a PLT entry with a GOT slot for each symbol that is called and may be out of reach. `section` is the index
    /// of the section that holds the records. A data reference (`R_X86_64_PC32`) may not be redirected and needs no
    /// slot.
    ///
    /// Records that [`crate::apply`] refuses are ignored here.
    pub fn scan(&mut self, section: u32, relas: Records<'_, Rela>, mut may_be_far: impl FnMut(u32) -> bool) {
        for (record, rela) in (0..).zip(relas.iter()) {
            let site = || RelocSite { section, record, raw: rela.kind, offset: rela.offset, symbol: rela.symbol };
            match row(rela.kind).map(|row| row.value) {
                Some(RelocFormula::SlotMinusPlace | RelocFormula::SlotMinusGot) => self.need_slot(site()),
                Some(RelocFormula::CallMinusPlace) if may_be_far(rela.symbol) => self.need_entry(site()),
                Some(value) if value.is_thread_local() => self.need_thread_local(value, site()),
                _ => {}
            }
        }
    }

    fn need_thread_local(&mut self, value: RelocFormula, site: RelocSite) {
        if site.symbol >= self.symbols {
            return;
        }
        if self.tls.is_empty() {
            self.tls.resize(index(self.symbols.into()), TlsEntries::default());
        }
        let Some(entries) = self.tls.get_mut(index(site.symbol.into())) else { return };
        entries.accessed = true;
        match value {
            RelocFormula::TlsPairMinusPlace if entries.pair == 0 => {
                entries.pair = number(self.pairs.len());
                self.pairs.push(site);
            }
            RelocFormula::TlsDescriptorMinusPlace if entries.descriptor == 0 => {
                entries.descriptor = number(self.descriptors.len());
                self.descriptors.push(site);
            }
            RelocFormula::TlsOwnPairMinusPlace => self.own_pair = self.own_pair.or(Some(site)),
            RelocFormula::TlsSlotMinusPlace | RelocFormula::TlsOffset => {
                if !entries.fixed {
                    entries.fixed = true;
                    self.fixed.push(site);
                }
                if value == RelocFormula::TlsSlotMinusPlace {
                    self.need_slot(site);
                }
            }
            _ => {}
        }
    }

    /// Returns the first relocation of each variable that needs a fixed offset from the thread pointer.
    #[must_use]
    pub fn fixed(&self) -> &[RelocSite] {
        &self.fixed
    }

    /// Returns whether a relocation accesses this symbol as a thread-local variable.
    #[must_use]
    pub fn is_thread_local(&self, symbol: u32) -> bool {
        self.tls.get(index(symbol.into())).is_some_and(|entries| entries.accessed)
    }

    /// Returns whether any relocation accesses a thread-local variable.
    #[must_use]
    pub fn has_thread_local(&self) -> bool {
        !self.tls.is_empty()
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

    fn need_slot(&mut self, site: RelocSite) {
        let next = number(self.got.len());
        if let Some(entries) = self.entries_of(site.symbol).filter(|entries| entries.got == 0) {
            entries.got = next;
            self.got.push(site);
        }
    }

    fn need_entry(&mut self, site: RelocSite) {
        let next = number(self.plt.len());
        if let Some(entries) = self.entries_of(site.symbol).filter(|entries| entries.plt == 0) {
            entries.plt = next;
            self.plt.push(site);
            self.need_slot(site);
        }
    }

    /// Returns the size of the GOT in bytes: the slots, and then the pairs and descriptors of thread-local variables.
    #[must_use]
    pub fn got_size(&self) -> u64 {
        self.pairs_start() + TLS_SLOT * wide(self.pairs.len() + self.descriptors.len())
    }

    /// Returns the offset of the own pair in the GOT.
    fn own_pair_start(&self) -> u64 {
        SLOT * wide(self.got.len())
    }

    fn pairs_start(&self) -> u64 {
        self.own_pair_start() + if self.own_pair.is_some() { TLS_SLOT } else { 0 }
    }

    fn descriptors_start(&self) -> u64 {
        self.pairs_start() + TLS_SLOT * wide(self.pairs.len())
    }

    /// Returns the alignment of the GOT.
    #[must_use]
    pub const fn got_align(&self) -> u64 {
        SLOT
    }

    /// Returns the size of the PLT in bytes.
    #[must_use]
    pub fn plt_size(&self) -> u64 {
        ENTRY * wide(self.plt.len())
    }

    /// Returns the alignment of the PLT.
    #[must_use]
    pub const fn plt_align(&self) -> u64 {
        ENTRY
    }

    /// Gives the two tables their addresses. `got` is the address of `_GLOBAL_OFFSET_TABLE_` even if there is no slot:
    /// code of the medium and large models refers to it in any case.
    #[must_use]
    pub fn place(self, got: Addr, plt: Addr) -> Slots {
        Slots { plan: self, got, plt, tls: TlsBlocks::default() }
    }
}

/// Returns the number, from 1, of the entry after `len` others. No table is longer than the symbol table, whose indices
/// are 32 bits wide.
fn number(len: usize) -> u32 {
    u32::try_from(len).map_or(u32::MAX, |len| len.saturating_add(1))
}

/// The GOT slots and PLT entries of a module, with their addresses.
#[derive(Clone, Default, Debug)]
pub struct Slots {
    plan: SlotPlan,
    got: Addr,
    plt: Addr,
    tls: TlsBlocks,
}

impl Slots {
    /// Adds the blocks of thread-local variables. Without this call, the slots are those of a module that has none.
    #[must_use]
    pub fn with_thread_local(self, tls: TlsBlocks) -> Slots {
        Slots { tls, ..self }
    }

    pub(crate) fn thread_local(&self) -> &TlsBlocks {
        &self.tls
    }

    /// Returns the argument of `__tls_get_addr` for this variable, if there is one.
    #[must_use]
    pub fn pair(&self, symbol: u32) -> Option<Addr> {
        let number = self.plan.tls.get(index(symbol.into()))?.pair.checked_sub(1)?;
        Some(self.got + self.plan.pairs_start() + TLS_SLOT * u64::from(number))
    }

    /// Returns the argument of `__tls_get_addr` for the start of the module's own block, if there is one.
    #[must_use]
    pub fn own_pair(&self) -> Option<Addr> {
        self.plan.own_pair.map(|_| self.got + self.plan.own_pair_start())
    }

    /// Returns the descriptor of this variable, if there is one.
    #[must_use]
    pub fn descriptor(&self, symbol: u32) -> Option<Addr> {
        let number = self.plan.tls.get(index(symbol.into()))?.descriptor.checked_sub(1)?;
        Some(self.got + self.plan.descriptors_start() + TLS_SLOT * u64::from(number))
    }

    /// Returns the address of the GOT, which is the address of `_GLOBAL_OFFSET_TABLE_`.
    #[must_use]
    #[inline]
    pub fn got(&self) -> Addr {
        self.got
    }

    /// Returns the address of the PLT.
    #[must_use]
    #[inline]
    pub fn plt(&self) -> Addr {
        self.plt
    }

    /// Returns the GOT slot of this symbol, if there is one.
    #[must_use]
    #[inline]
    pub fn slot(&self, symbol: u32) -> Option<Addr> {
        let number = self.plan.entries.get(index(symbol.into()))?.got.checked_sub(1)?;
        Some(self.got + SLOT * u64::from(number))
    }

    /// Returns the PLT entry of this symbol, if there is one.
    #[must_use]
    #[inline]
    pub fn entry(&self, symbol: u32) -> Option<Addr> {
        let number = self.plan.entries.get(index(symbol.into()))?.plt.checked_sub(1)?;
        Some(self.plt + ENTRY * u64::from(number))
    }

    /// Returns the symbols that have a GOT slot, in order of their slots.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = u32> {
        self.plan.got.iter().map(|site| site.symbol)
    }

    /// Returns the symbols that have a PLT entry, in order of their entries.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = u32> {
        self.plan.plt.iter().map(|site| site.symbol)
    }

    /// Writes the address of its symbol into each GOT slot, and the pairs and descriptors of thread-local variables. All
    /// must be zero before. A slot stays zero if the symbol's section was discarded, or if the symbol's object is not
    /// loaded yet. The slot of a thread-local variable holds the variable's offset from the thread pointer.
    ///
    /// # Errors
    /// [`RelocError::NoSymbol`], [`RelocError::NotThreadLocal`], [`RelocError::NoFixedOffset`] or
    /// [`RelocError::Rejected`], with the relocation that first needed the slot.
    pub fn fill_got<Y, S>(&self, symbols: &Y, sink: &mut S) -> Result<(), RelocError>
    where
        Y: RelocSymbols + ?Sized,
        S: Sink + ?Sized,
    {
        let mut at = self.got;
        for &site in &self.plan.got {
            let symbol = symbols.symbol(site.symbol).ok_or(RelocError::NoSymbol { site })?;
            if symbol.kind.has_address() {
                let new = symbol.addr.get().to_le_bytes();
                put(Edit { at, old: &[0; 8], new: &new, why: why(site) }, site, sink)?;
            } else if let Some(block) = self.tls.block(&symbol) {
                let start = block.from_thread_pointer.ok_or(RelocError::NoFixedOffset { site })?;
                let new = start.wrapping_add_unsigned(symbol.addr.get()).to_le_bytes();
                put(Edit { at, old: &[0; 8], new: &new, why: why(site) }, site, sink)?;
            }
            at += SLOT;
        }
        if self.plan.has_thread_local() { self.fill_thread_local(symbols, sink) } else { Ok(()) }
    }

    fn fill_thread_local<Y, S>(&self, symbols: &Y, sink: &mut S) -> Result<(), RelocError>
    where
        Y: RelocSymbols + ?Sized,
        S: Sink + ?Sized,
    {
        let mut fill = |at, first: u64, second: u64, site| {
            let mut new = [0; 16];
            new[..8].copy_from_slice(&first.to_le_bytes());
            new[8..].copy_from_slice(&second.to_le_bytes());
            put(Edit { at, old: &[0; 16], new: &new, why: why(site) }, site, sink)
        };
        if let (Some(site), Some(at)) = (self.plan.own_pair, self.own_pair()) {
            let own = self.tls.own().ok_or(RelocError::NotThreadLocal { site })?;
            fill(at, own.number.into(), 0, site)?;
        }
        let found = |site: RelocSite| {
            let symbol = symbols.symbol(site.symbol).ok_or(RelocError::NoSymbol { site })?;
            let block = self.tls.block(&symbol).ok_or(RelocError::NotThreadLocal { site })?;
            Ok::<_, RelocError>((u64::from(block.number), symbol.addr.get()))
        };
        for &site in &self.plan.pairs {
            let Some(at) = self.pair(site.symbol) else { continue };
            let (number, offset) = found(site)?;
            fill(at, number, offset, site)?;
        }
        for &site in &self.plan.descriptors {
            let Some(at) = self.descriptor(site.symbol) else { continue };
            let (number, offset) = found(site)?;
            fill(at, self.tls.resolver.get(), offset << 32 | number, site)?;
        }
        Ok(())
    }

    /// Writes the PLT entries over the INT3 (0xcc) with which text memory is filled initially. Each entry jumps through
    /// the GOT slot of its symbol.
    ///
    /// # Errors
    /// [`RelocError::Overflow`] if the GOT is out of reach, or [`RelocError::Rejected`], with the relocation
    /// that first needed the entry.
    pub fn fill_plt<S: Sink + ?Sized>(&self, sink: &mut S) -> Result<(), RelocError> {
        let mut at = self.plt;
        for &site in &self.plan.plt {
            let slot = self.slot(site.symbol).ok_or(RelocError::MissingSlot { site })?;
            let far = |value| RelocError::overflow(site, RelocField::I32, value, RelocAdvice::Nearer);
            let new = entry(at, slot).map_err(far)?;
            put(Edit { at, old: &UNWRITTEN, new: &new, why: why(site) }, site, sink)?;
            at += ENTRY;
        }
        Ok(())
    }
}

fn why(site: RelocSite) -> EditOrigin {
    EditOrigin { engine: Engine::Slot, section: site.section, record: site.record }
}

fn put<S: Sink + ?Sized>(edit: Edit<'_>, site: RelocSite, sink: &mut S) -> Result<(), RelocError> {
    sink.edit(edit).map_err(|source| RelocError::Rejected { site, source })
}
