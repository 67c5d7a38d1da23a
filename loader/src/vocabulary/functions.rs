//! A module's functions that the loader itself calls.

use modload_edit::Addr;

/// Functions that the loader itself calls, by address.
#[derive(Clone, Default, Debug)]
pub(crate) struct Functions {
    pub(crate) init: Option<Addr>,
    pub(crate) exit: Option<Addr>,
    /// Resolvers of indirect functions, and the slots into which their results go.
    pub(crate) resolvers: Vec<(Addr, Addr)>,
    /// In order of their calls.
    pub(crate) constructors: Vec<Addr>,
    /// In order of their calls.
    pub(crate) destructors: Vec<Addr>,
    /// Its `struct module`.
    pub(crate) this_module: Option<Addr>,
    /// What `__cxa_finalize` knows the module by.
    pub(crate) dso_handle: Option<Addr>,
}

impl Functions {
    /// Whether none of the module's code runs when it goes.
    pub(crate) fn nothing_at_the_end(&self) -> bool {
        self.exit.is_none() && self.destructors.is_empty() && self.dso_handle.is_none()
    }
}
