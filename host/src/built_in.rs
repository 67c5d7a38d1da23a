//! The subscribers that every host has, in Linux's order: ftrace, live patching, static keys.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use modload_abi::section;
use modload_edit::{Addr, wide};
use modload_ftrace::Ftrace;
use modload_livepatch::{Livepatch, Transition};
use modload_loader::{BUILTIN, Loader};
use modload_static_keys::{StaticCall, StaticKey, StaticKeys};
use modload_text::{ArenaError, TrapMask};

use crate::patch;

/// What an embedder chooses for the built-in subscribers.
#[derive(Default, Debug)]
pub(crate) struct BuiltInOptions {
    /// The host's static keys, by the names under which modules use them.
    pub(crate) keys: Vec<(String, &'static StaticKey)>,
    /// The host's static calls, by the names under which modules use them.
    pub(crate) calls: Vec<(String, &'static StaticCall)>,
    /// When threads may start to use a live patch.
    pub(crate) transition: Transition,
}

impl BuiltInOptions {
    /// Returns the symbols of the host's static keys and static calls. They are placed in the arena, where the code of every
    /// module reaches them.
    ///
    /// # Errors
    /// [`ArenaError`]: the arena cannot be created.
    pub(crate) fn symbols(&self) -> Result<Vec<(String, Addr)>, ArenaError> {
        let mut symbols = vec![("__static_call_return0".to_owned(), modload_static_keys::return0()?)];
        for (name, key) in &self.keys {
            symbols.push((name.clone(), key.addr()?));
        }
        for (name, call) in &self.calls {
            let (key, trampoline) = call.addrs()?;
            symbols.push((format!("{}{name}", section::STATIC_CALL_KEY_PREFIX), key));
            symbols.push((format!("{}{name}", section::STATIC_CALL_TRAMPOLINE_PREFIX), trampoline));
        }
        Ok(symbols)
    }
}

/// The built-in subscribers of one host.
#[derive(Debug)]
pub(crate) struct BuiltIn {
    pub(crate) ftrace: Ftrace,
    pub(crate) livepatch: Livepatch,
}

impl BuiltIn {
    /// Adds the subscribers to the loader's chains, where they stay as long as there is a module: that may be longer than the
    /// host itself.
    pub(crate) fn join(loader: &Loader, options: &BuiltInOptions) -> BuiltIn {
        let [(tracing, first), (patching, second), (keys, third)] = BUILTIN;
        let ftrace = Ftrace::new();
        loader.subscribe(tracing, first, Arc::new(ftrace)).forget();
        let livepatch = Livepatch::new(ftrace, options.transition);
        loader.subscribe(patching, second, Arc::new(livepatch)).forget();
        loader.subscribe(keys, third, Arc::new(StaticKeys::new())).forget();
        BuiltIn { ftrace, livepatch }
    }

    /// Releases the modules that the host's live patches hold, before the host unloads its modules.
    pub(crate) fn release_modules(&self) {
        self.livepatch.leave();
    }

    /// Releases the rest, after the host has unloaded its modules.
    pub(crate) fn leave(&self) {
        self.ftrace.leave();
    }
}

/// Returns the C functions that the subscribers export to modules.
pub(crate) fn exports() -> impl Iterator<Item = (&'static str, Addr)> {
    type OfPatch = extern "C" fn(*const c_void) -> c_int;
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let enable_patch = patch::enable_patch as OfPatch as *const ();
    let enable_patch = ("klp_enable_patch", Addr::new(wide(enable_patch.expose_provenance())));
    modload_static_keys::exports().into_iter().chain(modload_livepatch::exports()).chain([enable_patch])
}

/// Sets how the process changes published text for static keys and for tracing.
pub(crate) fn set_trap_mask(mask: TrapMask) {
    modload_static_keys::set_trap_mask(mask);
    modload_ftrace::set_trap_mask(mask);
}

/// Frees trampolines that no thread can be in any more.
pub(crate) fn sweep() {
    modload_ftrace::sweep();
}
