//! The addresses of a module's symbols: the result of stage *resolve*.

use modload_edit::{Addr, index};
use modload_relocs::Symbol;

/// The addresses of all symbols of a module, by their index.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) symbols: Vec<Symbol>,
    /// Number of symbols from outside the module.
    pub(crate) external: u64,
    /// The symbols that the module defines, and that mean another's definition all the same, in order.
    pub(crate) elsewhere: Vec<u32>,
}

/// Which of several a symbol's position means: the only one, or that of this number, from 1.
pub(crate) fn picked(all: &[Addr], position: u64) -> Option<Addr> {
    match (position, all) {
        (0, [only]) => Some(*only),
        (0, _) => None,
        (number, all) => all.get(index(number - 1)).copied(),
    }
}
