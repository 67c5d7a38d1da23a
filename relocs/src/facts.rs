//! What a relocation must know about the world: the section it lies in and the symbol it refers to.

use modload_edit::Addr;

/// What a relocation does when the section of its symbol was not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDiscarded {
    /// It is an error.
    Refuse,
    /// The place stays as it is, which is zeros, and the relocation is counted as skipped: rows of `.eh_frame` for
    /// functions that are not there.
    LeaveZero,
}

/// A section that is relocated.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Index (in the module's section header table) of the section that holds the *relocations*; it is what the
    /// edits' [`modload_edit::Why`] says.
    pub section: u32,
    /// Where the relocated section will stand.
    pub addr: Addr,
    /// What the file has in it, without any relocation.
    pub bytes: &'a [u8],
    /// What to do about symbols in sections that were not kept.
    pub discarded: OnDiscarded,
}

/// Where a symbol comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SymbolKind {
    /// A section of this module.
    Defined,
    /// Nowhere: the number itself is the address. The null symbol (index 0) is an absolute 0.
    Absolute,
    /// Another module, or the host.
    External,
    /// Nobody defines it, and that is allowed; its address is [`Addr::NULL`].
    UndefinedWeak,
    /// A section of this module that was not kept; its address means nothing.
    Discarded,
    /// An object that is not there yet; its address means nothing until it comes.
    Waiting,
}

impl SymbolKind {
    /// Whether its address means something.
    #[must_use]
    #[inline]
    pub fn has_address(self) -> bool {
        !matches!(self, SymbolKind::Discarded | SymbolKind::Waiting)
    }
}

/// What a relocation must know about its symbol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// Its address.
    pub addr: Addr,
    /// Its size in bytes, as the symbol table has it.
    pub size: u64,
    /// Where it comes from.
    pub kind: SymbolKind,
}

/// The symbols of one module, by their index in its symbol table.
pub trait Symbols {
    /// The symbol at this index, or `None` if the table ends before it.
    fn symbol(&self, index: u32) -> Option<Symbol>;
}

impl Symbols for [Symbol] {
    #[inline]
    fn symbol(&self, index: u32) -> Option<Symbol> {
        self.get(usize::try_from(index).ok()?).copied()
    }
}
