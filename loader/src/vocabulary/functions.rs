//! A module's functions that the loader itself calls.

use modload_edit::Addr;

/// Functions that the loader itself calls, by address.
#[derive(Clone, Default, Debug)]
pub(crate) struct EntryPoints {
    pub(crate) init: Option<Addr>,
    pub(crate) exit: Option<Addr>,
    /// Resolvers of indirect functions, and the slots for their results.
    pub(crate) resolvers: Vec<(Addr, Addr)>,
    /// Constructors in call order.
    pub(crate) constructors: Vec<Addr>,
    /// Destructors in call order.
    pub(crate) destructors: Vec<Addr>,
    /// The module's `struct module`.
    pub(crate) this_module: Option<Addr>,
    /// The handle that is passed to `__cxa_finalize`.
    pub(crate) dso_handle: Option<Addr>,
}

impl EntryPoints {
    /// Whether no code of the module runs during the unload.
    pub(crate) fn nothing_at_the_end(&self) -> bool {
        self.exit.is_none() && self.destructors.is_empty() && self.dso_handle.is_none()
    }
}
