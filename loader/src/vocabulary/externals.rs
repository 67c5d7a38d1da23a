//! Symbols that come from outside all modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use modload_edit::Addr;

/// A symbol that comes from outside all modules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct External {
    /// Its address.
    pub addr: Addr,
    /// Whether only modules with a GPL-compatible licence may use it.
    pub gpl_only: bool,
    /// Its CRC, if uses of it are to be checked against `__versions`.
    pub crc: Option<u32>,
}

/// What the host offers to its modules.
pub trait Externals: Send + Sync {
    /// Symbols that come before those of modules: what the host exports.
    fn exported(&self, name: &[u8]) -> Option<External>;

    /// Symbols that come last, when no module has one of that name: those of the process.
    fn fallback(&self, name: &[u8]) -> Option<External>;

    /// For each of these names the addresses of the host's own symbols of that name, in the order of its symbol table,
    /// whether it exports them or not: what a live patch's symbols of `vmlinux` mean. Names that it does not have may be
    /// left out.
    fn own<'n>(&self, names: &BTreeSet<&'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
        let _ = names;
        BTreeMap::new()
    }

    /// The names behind [`Externals::exported`], to suggest one that is like what was asked for.
    fn names(&self) -> Vec<String>;
}

impl fmt::Debug for dyn Externals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Externals")
    }
}
