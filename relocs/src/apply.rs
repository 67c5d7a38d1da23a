//! Converts relocation records to edits, and to the inverse edits.

use modload_abi::{Records, Rela};
use modload_edit::{Addr, Edit, EditOrigin, Engine, Rejected, Sink, index, wide};

use crate::error::RelocAdvice;
use crate::row::{Before, Reason, RelocFormula, RelocRow};
use crate::x86_64::{ADDEND, OPCODE, RelaxableForm, may_begin, row};
use crate::{
    OnDiscarded, RelocCounts, RelocError, RelocField, RelocSite, RelocSymbol, RelocSymbolKind, RelocSymbols,
    RelocatedSection, Slots,
};

/// Converts the records of one section to edits of the section that they relocate.
///
/// Edits are made in the order of the records, at most one per record. Edits overlap only in a malformed module. An
/// [`modload_edit::EditSet`] always refuses an overlap; a [`modload_edit::Window`] refuses it if the bytes have
/// changed. If this function fails, the sink has taken the edits of the earlier records.
///
/// # Errors
/// [`RelocError`]: the first relocation that cannot be applied.
pub fn apply<Y, S>(
    target: &RelocatedSection<'_>,
    relas: Records<'_, Rela>,
    symbols: &Y,
    slots: &Slots,
    sink: &mut S,
) -> Result<RelocCounts, RelocError>
where
    Y: RelocSymbols + ?Sized,
    S: Sink + ?Sized,
{
    let mut counts = RelocCounts::default();
    for (record, rela) in (0..).zip(relas.iter()) {
        if counts.took_next {
            counts.took_next = false;
            continue;
        }
        RelocationRecord { target, relas: &relas, record, rela }.apply(symbols, slots, sink, &mut counts)?;
    }
    // Only the last record could have set it, and no record follows.
    counts.took_next = false;
    Ok(counts)
}

/// Makes the exact inverse of the edits of [`apply`] with the same arguments: every edit with `old` and `new`
/// exchanged.
///
/// # Errors
/// As for [`apply`].
pub fn clear<Y, S>(
    target: &RelocatedSection<'_>,
    relas: Records<'_, Rela>,
    symbols: &Y,
    slots: &Slots,
    sink: &mut S,
) -> Result<RelocCounts, RelocError>
where
    Y: RelocSymbols + ?Sized,
    S: Sink + ?Sized,
{
    apply(target, relas, symbols, slots, &mut Inverse(sink))
}

/// Passes each edit on with `old` and `new` exchanged.
struct Inverse<'s, S: ?Sized>(&'s mut S);

impl<S: Sink + ?Sized> Sink for Inverse<'_, S> {
    #[inline]
    fn edit(&mut self, edit: Edit<'_>) -> Result<(), Rejected> {
        self.0.edit(!edit)
    }
}

/// One record of the section. The `inline(always)` functions are the body of the loop: a call costs as much there as
/// the work itself.
#[derive(Clone, Copy)]
pub(crate) struct RelocationRecord<'t> {
    pub(crate) target: &'t RelocatedSection<'t>,
    /// All records of the section.
    pub(crate) relas: &'t Records<'t, Rela>,
    pub(crate) record: u32,
    pub(crate) rela: Rela,
}

impl RelocationRecord<'_> {
    /// The fast path, for nearly all relocations: one of the six relocations that Linux supports, a symbol that exists
    /// and a value that fits. The fast path has no branch that depends on the row except for the width, so the
    /// processor has little to predict.
    #[inline(always)]
    fn apply<Y, S>(self, symbols: &Y, slots: &Slots, sink: &mut S, counts: &mut RelocCounts) -> Result<(), RelocError>
    where
        Y: RelocSymbols + ?Sized,
        S: Sink + ?Sized,
    {
        let Some(row) = row(self.rela.kind) else { return Err(self.unsupported(Reason::Unknown)) };
        if row.before == Before::Zeros
            && let Some(symbol) = symbols.symbol(self.rela.symbol)
            && symbol.kind.has_address()
        {
            let value = self.near(row, &symbol);
            if row.field.fits(value) {
                counts.add_one(row.raw);
                return match row.field.width() {
                    8 => self.write::<8, S>(row, value, sink),
                    _ => self.write::<4, S>(row, value, sink),
                };
            }
        }
        self.apply_any(row, symbols, slots, sink, counts)
    }

    /// The slow path: any row, any symbol, any value.
    #[inline(never)]
    fn apply_any<Y, S>(
        self,
        row: &RelocRow,
        symbols: &Y,
        slots: &Slots,
        sink: &mut S,
        counts: &mut RelocCounts,
    ) -> Result<(), RelocError>
    where
        Y: RelocSymbols + ?Sized,
        S: Sink + ?Sized,
    {
        if let RelocFormula::Refused(reason) = row.value {
            return Err(self.unsupported(reason));
        }
        counts.add_one(row.raw);
        let Some(symbol) = symbols.symbol(self.rela.symbol) else { return Err(self.no_symbol()) };
        if symbol.kind == RelocSymbolKind::Discarded && row.value != RelocFormula::Nothing {
            if self.target.discarded == OnDiscarded::LeaveZero {
                counts.skipped += 1;
                return Ok(());
            }
            return Err(self.discarded());
        }
        if symbol.kind == RelocSymbolKind::Waiting && row.value != RelocFormula::Nothing {
            return Err(RelocError::Waiting { site: self.site() });
        }
        if matches!(symbol.kind, RelocSymbolKind::ThreadLocal(_))
            && !(row.value.is_thread_local() || matches!(row.value, RelocFormula::Nothing | RelocFormula::Size))
        {
            return Err(RelocError::ThreadLocal { site: self.site() });
        }

        let addend = self.rela.addend;
        let value = match row.value {
            RelocFormula::Nothing | RelocFormula::Refused(_) => return Ok(()),
            RelocFormula::TlsPairMinusPlace
            | RelocFormula::TlsOwnPairMinusPlace
            | RelocFormula::TlsDescriptorMinusPlace
            | RelocFormula::TlsDescriptorCall
            | RelocFormula::TlsBlockOffset
            | RelocFormula::TlsSlotMinusPlace
            | RelocFormula::TlsOffset => return self.apply_thread_local(row, &symbol, symbols, slots, sink, counts),
            RelocFormula::Symbol | RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace => {
                self.near(row, &symbol)
            }
            RelocFormula::SymbolMinusGot => symbol.addr.offset(addend) - slots.got(),
            RelocFormula::SlotMinusPlace => {
                if row.opcode != 0 && self.relax(row, &symbol, slots, sink)? {
                    counts.relaxed += 1;
                    return Ok(());
                }
                self.slot(slots)?.offset(addend) - self.place()
            }
            RelocFormula::SlotMinusGot => self.slot(slots)?.offset(addend) - slots.got(),
            RelocFormula::GotMinusPlace => slots.got().offset(addend) - self.place(),
            RelocFormula::Size => symbol.size.wrapping_add_signed(addend).cast_signed(),
        };
        let value = if row.field.fits(value) { value } else { self.through_plt(row, &symbol, value, slots, counts)? };
        // The width is a constant in each arm, so that comparing and storing the bytes are single instructions.
        match row.field.width() {
            0 => Ok(()),
            1 => self.write::<1, S>(row, value, sink),
            2 => self.write::<2, S>(row, value, sink),
            4 => self.write::<4, S>(row, value, sink),
            _ => self.write::<8, S>(row, value, sink),
        }
    }

    /// Computes the value of a row that uses the symbol's address itself, absolute or relative to the place.
    #[inline]
    fn near(self, row: &RelocRow, symbol: &RelocSymbol) -> i64 {
        let from = if row.value == RelocFormula::Symbol { Addr::NULL } else { self.place() };
        symbol.addr.offset(self.rela.addend) - from
    }

    /// Returns the address of the place.
    #[inline]
    pub(crate) fn place(self) -> Addr {
        self.target.addr + self.rela.offset
    }

    /// Returns the GOT slot of the symbol.
    #[inline]
    pub(crate) fn slot(self, slots: &Slots) -> Result<Addr, RelocError> {
        slots.slot(self.rela.symbol).ok_or_else(|| RelocError::MissingSlot { site: self.site() })
    }

    /// Returns the distance to the symbol's PLT entry, for a call whose direct distance to the symbol does not fit.
    fn through_plt(
        self,
        row: &RelocRow,
        symbol: &RelocSymbol,
        value: i64,
        slots: &Slots,
        counts: &mut RelocCounts,
    ) -> Result<i64, RelocError> {
        let Some(entry) = slots.entry(self.rela.symbol).filter(|_| row.value == RelocFormula::CallMinusPlace) else {
            return Err(self.overflow(row, symbol, value));
        };
        let distance = entry.offset(self.rela.addend) - self.place();
        if !row.field.fits(distance) {
            return Err(self.overflow(row, symbol, distance));
        }
        counts.through_plt += 1;
        Ok(distance)
    }

    /// Relaxes an instruction whose operand is a GOT slot: rewrites the instruction to use the symbol's address itself.
    /// Returns whether it was rewritten; if not, the instruction uses the slot.
    #[inline]
    fn relax<S: Sink + ?Sized>(
        self,
        row: &RelocRow,
        symbol: &RelocSymbol,
        slots: &Slots,
        sink: &mut S,
    ) -> Result<bool, RelocError> {
        let Some(start) = self.rela.offset.checked_sub(u64::from(row.opcode)) else {
            return Err(RelocError::NoOpcode { site: self.site(), opcode: row.opcode });
        };
        let opcode = self.rela.offset - OPCODE;
        let Some(old) = self.bytes::<6>(opcode) else { return Err(self.outside(row.field.width())) };
        if symbol.kind == RelocSymbolKind::UndefinedWeak || self.rela.addend != ADDEND {
            return Ok(false);
        }
        if !may_begin(row.opcode, self.bytes::<1>(start).map(|&[first]| first)) {
            return Ok(false);
        }
        let Some(form) = RelaxableForm::of(old[0], old[1]) else { return Ok(false) };
        if let Some(old) = self.general_dynamic_call(symbol, slots) {
            return self.relax_general_dynamic_call(row, symbol, old, sink);
        }
        let value = symbol.addr.offset(self.rela.addend + form.displacement_shift()) - self.place();
        if !row.field.fits(value) {
            return Ok(false);
        }
        let [a, b, c, d, ..] = value.to_le_bytes();
        let new = form.encode(old[1], [a, b, c, d]);
        self.put(Edit { at: self.target.addr + opcode, old, new: &new, why: self.why() }, sink)?;
        Ok(true)
    }

    /// Writes the low `N` bytes of a value that fits.
    #[inline(always)]
    pub(crate) fn write<const N: usize, S: Sink + ?Sized>(
        self,
        row: &RelocRow,
        value: i64,
        sink: &mut S,
    ) -> Result<(), RelocError> {
        let Some(file) = self.bytes::<N>(self.rela.offset) else { return Err(self.outside(row.field.width())) };
        let mut new = [0; N];
        new.copy_from_slice(&value.to_le_bytes()[..N]);
        let old = match row.before {
            Before::Zeros => &[0; N],
            Before::File => file,
        };
        self.put(Edit { at: self.place(), old, new: &new, why: self.why() }, sink)
    }

    /// Returns `N` bytes of the section as in the file.
    #[inline]
    fn bytes<const N: usize>(&self, offset: u64) -> Option<&[u8; N]> {
        self.target.bytes.get(index(offset)..)?.first_chunk()
    }

    #[inline(always)]
    pub(crate) fn put<S: Sink + ?Sized>(self, edit: Edit<'_>, sink: &mut S) -> Result<(), RelocError> {
        sink.edit(edit).map_err(|source| self.rejected(source))
    }

    #[inline]
    pub(crate) fn why(self) -> EditOrigin {
        EditOrigin { engine: Engine::Relocation, section: self.target.section, record: self.record }
    }

    #[cold]
    pub(crate) fn site(self) -> RelocSite {
        let Rela { offset, kind, symbol, .. } = self.rela;
        RelocSite { section: self.target.section, record: self.record, raw: kind, offset, symbol }
    }

    #[cold]
    fn unsupported(self, reason: Reason) -> RelocError {
        RelocError::Unsupported { site: self.site(), reason }
    }

    #[cold]
    fn no_symbol(self) -> RelocError {
        RelocError::NoSymbol { site: self.site() }
    }

    #[cold]
    fn discarded(self) -> RelocError {
        RelocError::Discarded { site: self.site() }
    }

    #[cold]
    fn outside(self, width: u8) -> RelocError {
        RelocError::Outside { site: self.site(), width, size: wide(self.target.bytes.len()) }
    }

    #[cold]
    fn rejected(self, source: Rejected) -> RelocError {
        RelocError::Rejected { site: self.site(), source }
    }

    #[cold]
    pub(crate) fn overflow(self, row: &RelocRow, symbol: &RelocSymbol, value: i64) -> RelocError {
        let own = symbol.kind == RelocSymbolKind::Defined;
        let advice = match (row.value, row.field) {
            (_, RelocField::Bits16 | RelocField::Bits8 | RelocField::I8) | (RelocFormula::Size, _) => {
                RelocAdvice::Wider
            }
            (RelocFormula::Symbol, _) => RelocAdvice::PositionIndependent,
            (RelocFormula::SymbolMinusPlace | RelocFormula::CallMinusPlace, _) if !own => {
                RelocAdvice::PositionIndependent
            }
            _ => RelocAdvice::Nearer,
        };
        RelocError::overflow(self.site(), row.field, value, advice)
    }
}
