//! Static keys and static calls of the host itself, for modules to branch on and to call.
#![expect(unsafe_code, reason = "nothing can check the type of a static call's function")]

use modload_edit::{Addr, wide};
pub use modload_static_keys::{KeyError, StaticCall, StaticKey};

use crate::builder::HostBuilder;

impl HostBuilder {
    /// Exports a static key of the host's: modules branch on it with `static_branch_likely` and `static_branch_unlikely`.
    #[must_use]
    pub fn static_key(mut self, name: &str, key: &'static StaticKey) -> HostBuilder {
        self.built_in.keys.push((name.to_owned(), key));
        self
    }

    /// Exports a static call of the host's, for modules to call with `static_call`: its key as `__SCK__NAME` and its
    /// trampoline as `__SCT__NAME`. It calls nothing until [`set_static_call`](set_static_call).
    #[must_use]
    pub fn static_call(mut self, name: &str, call: &'static StaticCall) -> HostBuilder {
        self.built_in.calls.push((name.to_owned(), call));
        self
    }
}

/// Has a static call of the host's call another function from now on; null for none.
///
/// # Errors
/// [`KeyError`]: it calls what it called before.
///
/// # Safety
/// The function has the type that modules declare the call with, and stays until another one is set and nobody is in it. A
/// module that has gone, in quarantine or by force, goes on to call what was set when it went.
pub unsafe fn set_static_call(call: &'static StaticCall, function: *const ()) -> Result<(), KeyError> {
    let (key, _) = call.addrs()?;
    modload_static_keys::update_static_call(key, Addr::new(wide(function.expose_provenance())))
}
