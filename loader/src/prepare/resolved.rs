//! The addresses of a module's symbols: the result of stage *resolve*.

use modload_edit::{Addr, index};
use modload_relocs::{RelocSymbol, TlsBlocks};
use modload_tls::ThreadLocalBlock;

/// The addresses of all symbols of a module, by index.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) symbols: Vec<RelocSymbol>,
    /// Number of symbols from outside the module.
    pub(crate) external: u64,
    /// Symbols of the module that another module's definition replaces, in order.
    pub(crate) elsewhere: Vec<u32>,
    /// The thread-local storage to which the symbols refer.
    pub(crate) thread_local: TlsBlocks,
    /// The blocks of libraries among it. They live as long as the module.
    pub(crate) library_blocks: Vec<ThreadLocalBlock>,
    /// Constant objects of the process that need a copy near the module: symbol and contents.
    pub(crate) near: Vec<(u32, Vec<u8>)>,
}

/// Returns the address at a symbol position: position 0 means the only one, other positions count from 1.
pub(crate) fn picked(all: &[Addr], position: u64) -> Option<Addr> {
    match (position, all) {
        (0, [only]) => Some(*only),
        (0, _) => None,
        (number, all) => all.get(index(number - 1)).copied(),
    }
}
