//! A row of the table of relocations: its formula, its field and its special cases.

use std::fmt;

use crate::RelocField;

/// The formula of a relocation. `S` is the symbol's address, `A` the addend, `P` the address of the place, `GOT` the
/// address of the global offset table, `G` the address of the symbol's GOT slot, `Z` the symbol's size. Of a thread-local
/// variable, `DTPOFF` is the offset in its block and `TPOFF` the offset from the thread pointer; [`crate::TlsBlock`]
/// explains `PAIR` and `DESC`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelocFormula {
    /// No value: the place stays unchanged.
    Nothing,
    /// `S + A`
    Symbol,
    /// `S + A - P`
    SymbolMinusPlace,
    /// `S + A - P` if this fits. Otherwise `S` is the address of the symbol's PLT entry, which is correct because only
    /// calls and jumps use this formula.
    CallMinusPlace,
    /// `S + A - GOT`. For `R_X86_64_PLTOFF64` the ABI allows a PLT entry instead of the symbol, but a 64-bit field
    /// reaches every symbol.
    SymbolMinusGot,
    /// `G + A - P`
    SlotMinusPlace,
    /// `G + A - GOT`
    SlotMinusGot,
    /// `GOT + A - P`
    GotMinusPlace,
    /// `Z + A`
    Size,
    /// `PAIR + A - P`: the symbol's argument for `__tls_get_addr` (general dynamic).
    TlsPairMinusPlace,
    /// `OWN + A - P`: the argument for `__tls_get_addr` of the start of the module's own block (local dynamic).
    TlsOwnPairMinusPlace,
    /// `DESC + A - P`: the symbol's descriptor.
    TlsDescriptorMinusPlace,
    /// The call through a descriptor. The place stays unchanged unless the access is relaxed.
    TlsDescriptorCall,
    /// `DTPOFF + A`: the offset in the block, or `TPOFF + A` where local dynamic accesses are relaxed.
    TlsBlockOffset,
    /// `G + A - P`, where the slot holds the symbol's offset from the thread pointer (initial exec).
    TlsSlotMinusPlace,
    /// `TPOFF + A`: the offset from the thread pointer (local exec).
    TlsOffset,
    /// Not supported, for this reason.
    Refused(Reason),
}

/// Why a relocation is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Linkers write the relocation for the dynamic loader. A relocatable object never has one.
    LinkedObject,
    /// The ABI has withdrawn the relocation.
    Withdrawn,
    /// The relocation is for an instruction of the APX extension.
    Apx,
    /// The relocation tells a linker which C++ virtual tables are used.
    VirtualTable,
    /// The ABI has no such number.
    Unknown,
}

impl RelocFormula {
    /// Returns whether the formula uses the symbol's own address, relative to the place or absolute.
    #[must_use]
    pub fn is_of_symbol(self) -> bool {
        use RelocFormula::{CallMinusPlace, Symbol, SymbolMinusPlace};
        matches!(self, Symbol | SymbolMinusPlace | CallMinusPlace)
    }

    /// Returns whether the formula is for thread-local variables only.
    #[must_use]
    pub fn is_thread_local(self) -> bool {
        use RelocFormula::{
            TlsBlockOffset, TlsDescriptorCall, TlsDescriptorMinusPlace, TlsOffset, TlsOwnPairMinusPlace,
            TlsPairMinusPlace, TlsSlotMinusPlace,
        };
        matches!(
            self,
            TlsPairMinusPlace
                | TlsOwnPairMinusPlace
                | TlsDescriptorMinusPlace
                | TlsDescriptorCall
                | TlsBlockOffset
                | TlsSlotMinusPlace
                | TlsOffset
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::LinkedObject => "only linked objects hold it, not relocatable ones",
            Reason::Withdrawn => "the ABI has withdrawn it",
            Reason::Apx => "instructions of the APX extension are not supported",
            Reason::VirtualTable => "it is a hint for the garbage collection of a linker",
            Reason::Unknown => "the ABI has no such number",
        })
    }
}

/// The bytes that must be at the place before it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Zeros, which Linux requires for these six relocations. This detects a section that is relocated twice.
    Zeros,
    /// The bytes of the file.
    File,
}

/// One row of the table: a relocation and how it is applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelocRow {
    /// The relocation's number in the file.
    pub raw: u32,
    /// The relocation's name in the ABI.
    pub name: &'static str,
    /// The formula.
    pub value: RelocFormula,
    /// The field that takes the value. The field determines the range.
    pub field: RelocField,
    /// The bytes that must be at the place before.
    pub before: Before,
    /// The number of bytes of the instruction (prefix, opcode, ModRM) before the field that may be rewritten to use the
    /// symbol itself instead of its slot. 0 if the instruction must stay unchanged.
    pub opcode: u8,
}
