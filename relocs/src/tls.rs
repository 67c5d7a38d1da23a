//! Thread-local variables: where they are, and the relocations that access them.
//!
//! A variable lies in a *block*: the thread-local storage of one module or library. Each thread has a copy of each
//! block. How code finds the copy of its own thread depends on the compiler's model:
//!
//! | model | the code | without a fixed offset | with a fixed offset |
//! |---|---|---|---|
//! | general dynamic | calls `__tls_get_addr` with a pair | the pair | relaxed to local exec |
//! | local dynamic | the same, once for several variables | the module's own pair | relaxed to local exec |
//! | descriptor | calls the function in a descriptor | the descriptor | relaxed to local exec |
//! | initial exec | adds a GOT slot to the thread pointer | refused | relaxed, or the slot |
//! | local exec | adds a constant to the thread pointer | refused | the constant |

use modload_abi::{Records, Rela};
use modload_edit::{Addr, index};

use crate::row::RelocFormula;
use crate::x86_64::{ADDEND, LocalDynamic, row};
use crate::{RelocField, RelocSymbol, RelocSymbolKind};

/// The thread-local storage of one module or library.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TlsBlock {
    /// The number by which a resolver finds the block: the first word of a pair, and the lower half of a descriptor's
    /// argument. The second word and the upper half are the offset in the block.
    pub number: u32,
    /// The distance of the block from the thread pointer, if it is the same in every thread.
    pub from_thread_pointer: Option<i64>,
}

/// All blocks to which the symbols of a module refer, and the functions that find them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsBlocks {
    /// By the number in [`RelocSymbolKind::ThreadLocal`]. The module's own block is the first one.
    pub blocks: Vec<TlsBlock>,
    /// The address of `__tls_get_addr`. Only calls of this function are relaxed.
    pub get_addr: Addr,
    /// The address of the function in each descriptor.
    pub resolver: Addr,
    /// Whether local dynamic accesses are relaxed: [`relaxes_local_dynamic`] for each section of the module.
    pub relax_local: bool,
}

impl TlsBlocks {
    /// Returns the block of a symbol.
    pub(crate) fn block(&self, symbol: &RelocSymbol) -> Option<&TlsBlock> {
        let RelocSymbolKind::ThreadLocal(number) = symbol.kind else { return None };
        self.blocks.get(index(number.into()))
    }

    /// Returns the module's own block.
    pub(crate) fn own(&self) -> Option<&TlsBlock> {
        self.blocks.first()
    }
}

/// Returns whether every local dynamic access of a section can be relaxed: its instructions are those of the ABI. The
/// accesses of a module are relaxed all or not at all, because an offset does not tell to which access it belongs.
#[must_use]
pub fn relaxes_local_dynamic(bytes: &[u8], relas: Records<'_, Rela>) -> bool {
    relas.iter().all(|rela| match row(rela.kind).map(|row| (row.value, row.field)) {
        Some((RelocFormula::TlsOwnPairMinusPlace, _)) => {
            let start = rela.offset.checked_sub(LocalDynamic::BEFORE).and_then(|start| bytes.get(index(start)..));
            rela.addend == ADDEND && start.and_then(LocalDynamic::of).is_some()
        }
        // The offset of a large code model; GNU ld does not relax it either.
        Some((RelocFormula::TlsBlockOffset, RelocField::I64)) => false,
        _ => true,
    })
}
