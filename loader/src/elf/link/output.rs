//! The parts of a merged object, before they are written.

use object::elf;
use object::write::elf::Rel;

/// Properties that sections must share to be merged.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MergeKey<'a> {
    pub(super) name: &'a [u8],
    pub(super) flags: elf::SectionFlags,
    pub(super) contents: SectionContents,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SectionContents {
    Bytes,
    Zeros,
    /// One that cannot be merged, by object and section.
    Alone(usize, u32),
    /// Not part of the result. Symbols of the section keep a section, so that a relocation against them is reported as
    /// discarded.
    Gone,
}

/// A section of the result.
pub(super) struct OutputSection<'a> {
    pub(super) key: MergeKey<'a>,
    pub(super) kind: elf::SectionType,
    pub(super) size: u64,
    pub(super) align: u64,
    /// Offset and bytes of each piece.
    pub(super) pieces: Vec<(u64, &'a [u8])>,
    pub(super) relas: Vec<Rel>,
}

/// A symbol of the result, with the place of the definition.
pub(super) struct NewSymbol<'a> {
    pub(super) name: &'a [u8],
    pub(super) info: elf::SymbolInfo,
    pub(super) visibility: elf::SymbolVisibility,
    pub(super) at: MergedPlace,
    pub(super) value: u64,
    pub(super) size: u64,
}

#[derive(Clone, Copy)]
pub(super) enum MergedPlace {
    Special(elf::SymbolSection),
    Output(usize),
}
