//! The relocations of thread-local variables.

use modload_abi::Rela;
use modload_edit::{Addr, Edit, Sink, index};

use crate::apply::RelocationRecord;
use crate::row::{RelocFormula, RelocRow};
use crate::x86_64::{ADDEND, DescriptorCall, GeneralDynamic, InitialExec, LocalDynamic, descriptor_load};
use crate::{RelocCounts, RelocError, RelocSymbol, RelocSymbols, Slots};

impl RelocationRecord<'_> {
    /// Applies a row whose formula is for thread-local variables.
    pub(crate) fn apply_thread_local<Y, S>(
        self,
        row: &RelocRow,
        symbol: &RelocSymbol,
        symbols: &Y,
        slots: &Slots,
        sink: &mut S,
        counts: &mut RelocCounts,
    ) -> Result<(), RelocError>
    where
        Y: RelocSymbols + ?Sized,
        S: Sink + ?Sized,
    {
        let tls = slots.thread_local();
        let block = tls.block(symbol).ok_or_else(|| RelocError::NotThreadLocal { site: self.site() })?;
        let variable = symbol.addr - Addr::NULL;
        let fixed = block.from_thread_pointer.map(|block| block.wrapping_add(variable));
        let is_call = |rela: &Rela, distance| {
            let calls = symbols.symbol(rela.symbol).is_some_and(|called| called.addr == tls.get_addr);
            rela.offset == self.rela.offset + distance && calls
        };
        let missing = || RelocError::MissingSlot { site: self.site() };
        let value = match row.value {
            RelocFormula::TlsPairMinusPlace => {
                let sequence = self.before::<16>(GeneralDynamic::BEFORE).filter(|code| GeneralDynamic::is(code));
                let call = self.next().filter(|next| is_call(next, GeneralDynamic::CALL));
                if let (Some(fixed), Some(old), Some(call)) = (fixed, sequence, call)
                    && self.rela.addend == ADDEND
                {
                    let new = GeneralDynamic::relaxed(self.fixed_offset(fixed)?);
                    return self.rewrite(GeneralDynamic::BEFORE, old, &new, Some(call), sink, counts);
                }
                self.to(slots.pair(self.rela.symbol).ok_or_else(missing)?)
            }
            RelocFormula::TlsOwnPairMinusPlace => {
                if tls.relax_local
                    && let Some(code) = self.code_from(LocalDynamic::BEFORE)
                    && let Some(sequence) = LocalDynamic::of(code)
                {
                    let Some(call) = self.next().filter(|next| is_call(next, sequence.call())) else {
                        return Err(RelocError::Sequence { site: self.site() });
                    };
                    let new = sequence.relaxed();
                    return self.rewrite(LocalDynamic::BEFORE, &code[..new.len()], new, Some(call), sink, counts);
                }
                self.to(slots.own_pair().ok_or_else(missing)?)
            }
            RelocFormula::TlsDescriptorMinusPlace => {
                if let Some(fixed) = fixed {
                    let sequence = || RelocError::Sequence { site: self.site() };
                    let old = self.before::<7>(InitialExec::BEFORE).ok_or_else(sequence)?;
                    let new = descriptor_load(old, self.fixed_offset(fixed)?).ok_or_else(sequence)?;
                    return self.rewrite(InitialExec::BEFORE, old, &new, None, sink, counts);
                }
                self.to(slots.descriptor(self.rela.symbol).ok_or_else(missing)?)
            }
            RelocFormula::TlsDescriptorCall => {
                let old = self.before::<2>(0).filter(|code| **code == DescriptorCall::CODE);
                let old = old.ok_or_else(|| RelocError::Sequence { site: self.site() })?;
                if fixed.is_some() {
                    return self.rewrite(0, old, &DescriptorCall::RELAXED, None, sink, counts);
                }
                return Ok(());
            }
            RelocFormula::TlsBlockOffset => {
                let own = tls.own().and_then(|block| block.from_thread_pointer).filter(|_| tls.relax_local);
                own.unwrap_or(0).wrapping_add(variable).wrapping_add(self.rela.addend)
            }
            RelocFormula::TlsSlotMinusPlace => {
                let fixed = fixed.ok_or_else(|| RelocError::NoFixedOffset { site: self.site() })?;
                if self.rela.addend == ADDEND
                    && let Some(old) = self.before::<7>(InitialExec::BEFORE)
                    && let Some(new) = InitialExec::relaxed(old, self.fixed_offset(fixed)?)
                {
                    return self.rewrite(InitialExec::BEFORE, old, &new, None, sink, counts);
                }
                self.to(self.slot(slots)?)
            }
            _ => {
                let fixed = fixed.ok_or_else(|| RelocError::NoFixedOffset { site: self.site() })?;
                fixed.wrapping_add(self.rela.addend)
            }
        };
        if !row.field.fits(value) {
            return Err(self.overflow(row, symbol, value));
        }
        match row.field.width() {
            4 => self.write::<4, S>(row, value, sink),
            _ => self.write::<8, S>(row, value, sink),
        }
    }

    /// Returns the eight bytes of an indirect call of `__tls_get_addr` in a general dynamic sequence.
    pub(crate) fn general_dynamic_call(&self, symbol: &RelocSymbol, slots: &Slots) -> Option<&[u8; 8]> {
        let tls = slots.thread_local();
        if symbol.addr != tls.get_addr || tls.blocks.is_empty() {
            return None;
        }
        let sequence = self.before::<16>(GeneralDynamic::BEFORE + GeneralDynamic::CALL);
        sequence.filter(|code| GeneralDynamic::is(code))?.last_chunk()
    }

    /// Relaxes this call. The two prefixes before the opcode belong to it: with the general form of a relaxed call they
    /// would be those of a call with a 16-bit operand, for some processors.
    pub(crate) fn relax_general_dynamic_call<S: Sink + ?Sized>(
        self,
        row: &RelocRow,
        symbol: &RelocSymbol,
        old: &[u8; 8],
        sink: &mut S,
    ) -> Result<bool, RelocError> {
        let value = symbol.addr.offset(self.rela.addend) - self.place();
        if !row.field.fits(value) {
            return Ok(false);
        }
        let [a, b, c, d, ..] = value.to_le_bytes();
        let mut new = [0, 0, 0, 0, a, b, c, d];
        new[..4].copy_from_slice(&GeneralDynamic::DIRECT_CALL);
        let at = self.target.addr + (self.rela.offset - 4);
        self.put(Edit { at, old, new: &new, why: self.why() }, sink)?;
        Ok(true)
    }

    /// Returns the distance from the place to an address, plus the addend.
    fn to(self, at: Addr) -> i64 {
        at.offset(self.rela.addend) - self.place()
    }

    /// Returns the section's bytes from `before` bytes before the place on, as in the file.
    fn code_from(&self, before: u64) -> Option<&[u8]> {
        self.target.bytes.get(index(self.rela.offset.checked_sub(before)?)..)
    }

    /// Returns the first `N` of these bytes.
    fn before<const N: usize>(&self, before: u64) -> Option<&[u8; N]> {
        self.code_from(before)?.first_chunk()
    }

    /// Returns the record after this one.
    fn next(&self) -> Option<Rela> {
        self.relas.iter().nth(index(self.record.into()) + 1)
    }

    /// Returns an offset from the thread pointer as an instruction holds it.
    fn fixed_offset(self, fixed: i64) -> Result<[u8; 4], RelocError> {
        i32::try_from(fixed).map(i32::to_le_bytes).map_err(|_| RelocError::NoFixedOffset { site: self.site() })
    }

    /// Rewrites the sequence that begins `before` bytes before the place. `call` is the record of a call in it.
    fn rewrite<S: Sink + ?Sized>(
        self,
        before: u64,
        old: &[u8],
        new: &[u8],
        call: Option<Rela>,
        sink: &mut S,
        counts: &mut RelocCounts,
    ) -> Result<(), RelocError> {
        let at = self.target.addr + (self.rela.offset - before);
        self.put(Edit { at, old, new, why: self.why() }, sink)?;
        counts.relaxed += 1;
        if let Some(call) = call {
            counts.add_one(call.kind);
            counts.took_next = true;
        }
        Ok(())
    }
}
