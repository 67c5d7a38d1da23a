//! Symbols from outside of all modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use modload_edit::Addr;

/// A symbol from outside of all modules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct External {
    /// Address of the symbol.
    pub addr: Addr,
    /// Whether only modules with a GPL-compatible licence may use the symbol.
    pub gpl_only: bool,
    /// CRC of the symbol, to be compared with `__versions`; `None`: no comparison.
    pub crc: Option<u32>,
}

/// The symbols that a host offers to modules.
pub trait Externals: Send + Sync {
    /// Returns a symbol that the host exports. Host exports are searched before the exports of modules.
    fn exported(&self, name: &[u8]) -> Option<External>;

    /// Returns a symbol of the process. The process is searched last, after all modules.
    fn fallback(&self, name: &[u8]) -> Option<External>;

    /// Opens a shared library that a module asks for (`MODULE_INFO(library, NAME)`). Its symbols are searched for this
    /// module only, after all others. The module keeps it until the module's memory is freed.
    ///
    /// # Errors
    /// The reason, as a part of a sentence.
    fn library(&self, name: &str) -> Result<Arc<dyn ModuleLibrary>, String> {
        let _ = name;
        Err("this host opens no libraries for modules".into())
    }

    /// Returns the contents of an object of the process that never change, so that a copy near the module is as good as
    /// the object itself: constant pointers such as `stderr`, and the tables of C++ types. `None` for any other object.
    fn constant(&self, name: &[u8], at: Addr) -> Option<Vec<u8>> {
        let _ = (name, at);
        None
    }

    /// Returns, for each of these names, the addresses of the host's own symbols of that name, exported or not, in the
    /// order of the host's symbol table: the meaning of a live patch's symbols of `vmlinux`. Unknown names may be left
    /// out.
    fn own<'n>(&self, names: &BTreeSet<&'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
        let _ = names;
        BTreeMap::new()
    }

    /// Returns the names of [`Externals::exported`], as candidates for suggestions.
    fn names(&self) -> Vec<String>;
}

/// A shared library that a module has asked for.
pub trait ModuleLibrary: fmt::Debug + Send + Sync {
    /// Returns a symbol of the library, or of a library that it needs.
    fn symbol(&self, name: &[u8]) -> Option<External>;
}

impl fmt::Debug for dyn Externals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Externals")
    }
}
