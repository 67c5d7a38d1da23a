//! The inputs of a relocation: the section that is relocated, and the symbols.

use modload_edit::Addr;

/// The treatment of a relocation whose symbol lies in a discarded section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDiscarded {
    /// The relocation is an error.
    Refuse,
    /// The place keeps its zeros and the relocation is counted as skipped. For rows of `.eh_frame` that describe
    /// discarded functions.
    LeaveZero,
}

/// A section that is relocated.
#[derive(Clone, Copy, Debug)]
pub struct RelocatedSection<'a> {
    /// The index, in the module's section header table, of the section that holds the *relocations*, as in the
    /// [`modload_edit::EditOrigin`] of the edits.
    pub section: u32,
    /// The final address of the relocated section.
    pub addr: Addr,
    /// The section's bytes in the file, before any relocation.
    pub bytes: &'a [u8],
    /// The treatment of symbols in discarded sections.
    pub discarded: OnDiscarded,
}

/// The origin of a symbol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelocSymbolKind {
    /// The symbol lies in a section of this module.
    Defined,
    /// The symbol is a number, which serves as its address. The null symbol (index 0) is an absolute 0.
    Absolute,
    /// The symbol lies in another module or in the host.
    External,
    /// The symbol is weak and has no definition. Its address is [`Addr::NULL`].
    UndefinedWeak,
    /// The symbol lies in a discarded section of this module. Its address has no meaning.
    Discarded,
    /// The symbol lies in an object that is not loaded yet. Its address has no meaning until then.
    Waiting,
    /// The symbol is a thread-local variable, in the block of this number ([`crate::TlsBlocks`]). Its address is the
    /// offset in the block.
    ThreadLocal(u32),
}

impl RelocSymbolKind {
    /// Returns whether the address of such a symbol has a meaning.
    #[must_use]
    #[inline]
    pub fn has_address(self) -> bool {
        !matches!(self, RelocSymbolKind::Discarded | RelocSymbolKind::Waiting | RelocSymbolKind::ThreadLocal(_))
    }
}

/// The facts about a symbol that a relocation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelocSymbol {
    /// The address of the symbol.
    pub addr: Addr,
    /// The size in bytes, as in the symbol table.
    pub size: u64,
    /// The origin of the symbol.
    pub kind: RelocSymbolKind,
}

/// The symbols of one module, by index in its symbol table.
pub trait RelocSymbols {
    /// Returns the symbol at this index, or `None` if the table ends before it.
    fn symbol(&self, index: u32) -> Option<RelocSymbol>;
}

impl RelocSymbols for [RelocSymbol] {
    #[inline]
    fn symbol(&self, index: u32) -> Option<RelocSymbol> {
        self.get(usize::try_from(index).ok()?).copied()
    }
}
