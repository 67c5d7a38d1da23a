//! The subscribers that every host has, in Linux's order: ftrace, live patching, static keys. A feature that is off leaves its
//! subscriber out.

use modload_edit::Addr;
use modload_loader::Loader;
use modload_text::{ArenaError, TrapMask};

/// The embedder's options for the built-in subscribers.
#[derive(Default, Debug)]
pub(crate) struct BuiltInOptions {
    /// The host's static keys, by the names under which modules use them.
    #[cfg(feature = "keys")]
    pub(crate) keys: Vec<(String, &'static modload_static_keys::StaticKey)>,
    /// The host's static calls, by the names under which modules use them.
    #[cfg(feature = "keys")]
    pub(crate) calls: Vec<(String, &'static modload_static_keys::StaticCall)>,
    /// When threads may start to use a live patch.
    #[cfg(feature = "livepatch")]
    pub(crate) transition: modload_livepatch::Transition,
}

impl BuiltInOptions {
    /// Returns the symbols of the host's static keys and static calls. They are placed in the arena, where the code of every
    /// module reaches them.
    ///
    /// # Errors
    /// [`ArenaError`]: the arena cannot be created.
    #[cfg(feature = "keys")]
    pub(crate) fn symbols(&self) -> Result<Vec<(String, Addr)>, ArenaError> {
        use modload_abi::section::{STATIC_CALL_KEY_PREFIX, STATIC_CALL_TRAMPOLINE_PREFIX};

        let mut symbols = vec![("__static_call_return0".to_owned(), modload_static_keys::return0()?)];
        for (name, key) in &self.keys {
            symbols.push((name.clone(), key.addr()?));
        }
        for (name, call) in &self.calls {
            let (key, trampoline) = call.addrs()?;
            symbols.push((format!("{STATIC_CALL_KEY_PREFIX}{name}"), key));
            symbols.push((format!("{STATIC_CALL_TRAMPOLINE_PREFIX}{name}"), trampoline));
        }
        Ok(symbols)
    }

    /// Returns no symbols: without static keys there are none.
    #[cfg(not(feature = "keys"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the same signature with every set of features")]
    pub(crate) fn symbols(&self) -> Result<Vec<(String, Addr)>, ArenaError> {
        Ok(Vec::new())
    }
}

/// The built-in subscribers of one host.
#[derive(Debug)]
pub(crate) struct BuiltIn {
    #[cfg(feature = "trace")]
    pub(crate) ftrace: modload_ftrace::Ftrace,
    #[cfg(feature = "livepatch")]
    pub(crate) livepatch: modload_livepatch::Livepatch,
}

impl BuiltIn {
    /// Adds the subscribers to the loader's chains, where they stay as long as there is a module: that may be longer than the
    /// host itself.
    #[cfg_attr(not(feature = "livepatch"), expect(unused_variables, reason = "not every set of features has options"))]
    pub(crate) fn join(loader: &Loader, options: &BuiltInOptions) -> BuiltIn {
        #[cfg(any(feature = "trace", feature = "keys"))]
        let [tracing, patching, keys] = modload_loader::BUILTIN;
        #[cfg(feature = "trace")]
        let ftrace = modload_ftrace::Ftrace::new();
        #[cfg(feature = "trace")]
        join(loader, tracing, ftrace);
        #[cfg(feature = "livepatch")]
        let livepatch = modload_livepatch::Livepatch::new(ftrace, options.transition);
        #[cfg(feature = "livepatch")]
        join(loader, patching, livepatch);
        #[cfg(feature = "keys")]
        join(loader, keys, modload_static_keys::StaticKeys::new());
        BuiltIn {
            #[cfg(feature = "trace")]
            ftrace,
            #[cfg(feature = "livepatch")]
            livepatch,
        }
    }

    /// Releases the modules that the host's live patches hold, before the host unloads its modules.
    pub(crate) fn release_modules(&self) {
        #[cfg(feature = "livepatch")]
        self.livepatch.leave();
    }

    /// Releases the rest, after the host has unloaded its modules.
    pub(crate) fn leave(&self) {
        #[cfg(feature = "trace")]
        self.ftrace.leave();
    }
}

/// Adds one subscriber to the loader's chains.
#[cfg(any(feature = "trace", feature = "keys"))]
fn join(
    loader: &Loader,
    (name, order): (&str, modload_loader::Order),
    subscriber: impl modload_loader::Subscriber + 'static,
) {
    loader.subscribe(name, order, std::sync::Arc::new(subscriber)).forget();
}

/// Returns the functions that the subscribers export to modules.
pub(crate) fn exports() -> Vec<(&'static str, Addr)> {
    <[Vec<_>]>::concat(&[
        #[cfg(feature = "keys")]
        Vec::from_iter(modload_static_keys::exports()),
        #[cfg(feature = "livepatch")]
        Vec::from_iter(modload_livepatch::exports()),
    ])
}

/// Sets how the process changes published text for static keys and for tracing.
#[cfg_attr(
    not(any(feature = "trace", feature = "keys")),
    expect(unused_variables, reason = "no subscriber changes text")
)]
pub(crate) fn set_trap_mask(mask: TrapMask) {
    #[cfg(feature = "keys")]
    modload_static_keys::set_trap_mask(mask);
    #[cfg(feature = "trace")]
    modload_ftrace::set_trap_mask(mask);
}

/// Frees trampolines that no thread can be in any more.
pub(crate) fn sweep() {
    #[cfg(feature = "trace")]
    modload_ftrace::sweep();
}
