//! The table of relocations: number, name, formula and field. Numbers and formulas are those of the System V ABI for
//! x86-64, version 1.0, table 4.9.

use crate::RelocField;
use crate::RelocField::{Bits8, Bits16, I8, I32, I64, Nowhere, U32};
use crate::row::{Before, Reason, RelocFormula, RelocRow};

const fn row_of(raw: u32, name: &'static str, value: RelocFormula, field: RelocField) -> RelocRow {
    RelocRow { raw, name, value, field, before: Before::File, opcode: 0 }
}

const fn row_over_zeros(raw: u32, name: &'static str, value: RelocFormula, field: RelocField) -> RelocRow {
    RelocRow { before: Before::Zeros, ..row_of(raw, name, value, field) }
}

const fn relaxable(raw: u32, name: &'static str, opcode: u8) -> RelocRow {
    RelocRow { opcode, ..row_of(raw, name, RelocFormula::SlotMinusPlace, I32) }
}

const fn refused(raw: u32, name: &'static str, reason: Reason) -> RelocRow {
    row_of(raw, name, RelocFormula::Refused(reason), Nowhere)
}

/// The number of rows in [`ROWS`].
pub(crate) const COUNT: usize = 52;

/// All relocations of the ABI. The index of a row is its relocation number.
pub const ROWS: &[RelocRow; COUNT] = {
    use Reason::{Apx, LinkedObject, Withdrawn};
    use RelocFormula::{
        CallMinusPlace, GotMinusPlace, Nothing, Size, SlotMinusGot, SlotMinusPlace, Symbol, SymbolMinusGot,
        SymbolMinusPlace, TlsBlockOffset, TlsDescriptorCall, TlsDescriptorMinusPlace, TlsOffset, TlsOwnPairMinusPlace,
        TlsPairMinusPlace, TlsSlotMinusPlace,
    };
    &[
        row_of(0, "R_X86_64_NONE", Nothing, Nowhere),
        row_over_zeros(1, "R_X86_64_64", Symbol, I64),
        row_over_zeros(2, "R_X86_64_PC32", SymbolMinusPlace, I32),
        row_of(3, "R_X86_64_GOT32", SlotMinusGot, I32),
        row_over_zeros(4, "R_X86_64_PLT32", CallMinusPlace, I32),
        refused(5, "R_X86_64_COPY", LinkedObject),
        refused(6, "R_X86_64_GLOB_DAT", LinkedObject),
        refused(7, "R_X86_64_JUMP_SLOT", LinkedObject),
        refused(8, "R_X86_64_RELATIVE", LinkedObject),
        row_of(9, "R_X86_64_GOTPCREL", SlotMinusPlace, I32),
        row_over_zeros(10, "R_X86_64_32", Symbol, U32),
        row_over_zeros(11, "R_X86_64_32S", Symbol, I32),
        row_of(12, "R_X86_64_16", Symbol, Bits16),
        row_of(13, "R_X86_64_PC16", SymbolMinusPlace, Bits16),
        row_of(14, "R_X86_64_8", Symbol, Bits8),
        row_of(15, "R_X86_64_PC8", SymbolMinusPlace, I8),
        refused(16, "R_X86_64_DTPMOD64", LinkedObject),
        row_of(17, "R_X86_64_DTPOFF64", TlsBlockOffset, I64),
        row_of(18, "R_X86_64_TPOFF64", TlsOffset, I64),
        row_of(19, "R_X86_64_TLSGD", TlsPairMinusPlace, I32),
        row_of(20, "R_X86_64_TLSLD", TlsOwnPairMinusPlace, I32),
        row_of(21, "R_X86_64_DTPOFF32", TlsBlockOffset, I32),
        row_of(22, "R_X86_64_GOTTPOFF", TlsSlotMinusPlace, I32),
        row_of(23, "R_X86_64_TPOFF32", TlsOffset, I32),
        row_over_zeros(24, "R_X86_64_PC64", SymbolMinusPlace, I64),
        row_of(25, "R_X86_64_GOTOFF64", SymbolMinusGot, I64),
        row_of(26, "R_X86_64_GOTPC32", GotMinusPlace, I32),
        row_of(27, "R_X86_64_GOT64", SlotMinusGot, I64),
        row_of(28, "R_X86_64_GOTPCREL64", SlotMinusPlace, I64),
        row_of(29, "R_X86_64_GOTPC64", GotMinusPlace, I64),
        row_of(30, "R_X86_64_GOTPLT64", SlotMinusGot, I64),
        row_of(31, "R_X86_64_PLTOFF64", SymbolMinusGot, I64),
        row_of(32, "R_X86_64_SIZE32", Size, U32),
        row_of(33, "R_X86_64_SIZE64", Size, I64),
        row_of(34, "R_X86_64_GOTPC32_TLSDESC", TlsDescriptorMinusPlace, I32),
        row_of(35, "R_X86_64_TLSDESC_CALL", TlsDescriptorCall, Nowhere),
        refused(36, "R_X86_64_TLSDESC", LinkedObject),
        refused(37, "R_X86_64_IRELATIVE", LinkedObject),
        refused(38, "R_X86_64_RELATIVE64", LinkedObject),
        refused(39, "R_X86_64_PC32_BND", Withdrawn),
        refused(40, "R_X86_64_PLT32_BND", Withdrawn),
        relaxable(41, "R_X86_64_GOTPCRELX", 2),
        relaxable(42, "R_X86_64_REX_GOTPCRELX", 3),
        refused(43, "R_X86_64_CODE_4_GOTPCRELX", Apx),
        refused(44, "R_X86_64_CODE_4_GOTTPOFF", Apx),
        refused(45, "R_X86_64_CODE_4_GOTPC32_TLSDESC", Apx),
        refused(46, "R_X86_64_CODE_5_GOTPCRELX", Apx),
        refused(47, "R_X86_64_CODE_5_GOTTPOFF", Apx),
        refused(48, "R_X86_64_CODE_5_GOTPC32_TLSDESC", Apx),
        refused(49, "R_X86_64_CODE_6_GOTPCRELX", Apx),
        refused(50, "R_X86_64_CODE_6_GOTTPOFF", Apx),
        refused(51, "R_X86_64_CODE_6_GOTPC32_TLSDESC", Apx),
    ]
};

/// GNU's two additional relocations, whose numbers are far from the others.
const VIRTUAL_TABLES: [RelocRow; 2] = [
    refused(250, "R_X86_64_GNU_VTINHERIT", Reason::VirtualTable),
    refused(251, "R_X86_64_GNU_VTENTRY", Reason::VirtualTable),
];

/// Returns the row of this relocation number, or `None` if the ABI has no such number.
#[must_use]
#[inline]
pub fn row(raw: u32) -> Option<&'static RelocRow> {
    match usize::try_from(raw).ok().and_then(|at| ROWS.get(at)) {
        None => VIRTUAL_TABLES.iter().find(|row| row.raw == raw),
        found => found,
    }
}

/// Returns the name of the relocation with this number, for tools that list relocations.
#[must_use]
pub fn name(raw: u32) -> Option<&'static str> {
    row(raw).map(|row| row.name)
}

#[cfg(test)]
mod tests {
    use super::{ROWS, name};

    #[test]
    fn a_row_stands_at_its_number() {
        for (at, row) in (0..).zip(ROWS) {
            assert_eq!(row.raw, at, "{}", row.name);
        }
    }

    #[test]
    fn names_are_those_of_the_abi() {
        assert_eq!(name(4), Some("R_X86_64_PLT32"));
        assert_eq!(name(42), Some("R_X86_64_REX_GOTPCRELX"));
        assert_eq!(name(250), Some("R_X86_64_GNU_VTINHERIT"));
        assert_eq!(name(52), None);
        assert_eq!(name(u32::MAX), None);
    }
}
