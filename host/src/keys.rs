//! Static keys and static calls of the host itself, for modules to branch on and to call.
//!
//! ```
//! use modload::Host;
//! use modload::keys::StaticKey;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! static VERBOSE: StaticKey = StaticKey::disabled();
//!
//! // Modules branch on it: extern struct static_key_false verbose; if (static_branch_unlikely(&verbose)) ..
//! let host = Host::builder().static_key("verbose", &VERBOSE).build()?;
//! VERBOSE.enable()?; // changes the branches of all modules
//! assert!(VERBOSE.is_enabled());
//! # Ok(())
//! # }
//! ```
#![expect(unsafe_code, reason = "nothing can check the type of a static call's function")]

use modload_edit::{Addr, wide};
pub use modload_static_keys::{KeyError, KeySiteProblem, StaticCall, StaticKey};

use crate::builder::HostBuilder;

impl HostBuilder {
    /// Exports a static key of the host. Modules branch on it with `static_branch_likely` and `static_branch_unlikely`.
    #[must_use]
    pub fn static_key(mut self, name: &str, key: &'static StaticKey) -> HostBuilder {
        self.built_in.keys.push((name.to_owned(), key));
        self
    }

    /// Exports a static call of the host, which modules call with `static_call`: its key as `__SCK__NAME` and its
    /// trampoline as `__SCT__NAME`. The static call has no function until [`set_static_call`](set_static_call).
    #[must_use]
    pub fn static_call(mut self, name: &str, call: &'static StaticCall) -> HostBuilder {
        self.built_in.calls.push((name.to_owned(), call));
        self
    }
}

/// Sets the function of a host's static call. Null means no function.
///
/// # Errors
/// [`KeyError`]: the static call keeps its previous function.
///
/// # Safety
/// The function must have the type with which modules declare the call. It must stay valid until another function is
/// set and no thread is in it. A module that was unloaded, in quarantine or by force, keeps calling the function that
/// was set at that time.
pub unsafe fn set_static_call(call: &'static StaticCall, function: *const ()) -> Result<(), KeyError> {
    let (key, _) = call.addrs()?;
    modload_static_keys::update_static_call(key, Addr::new(wide(function.expose_provenance())))
}
