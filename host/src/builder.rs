//! The builder of a host: the symbols that it offers and the modules that it allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use modload_abi::section::PV_OPS_SYMBOL as PV_OPS;
use modload_alternatives::Features;
use modload_edit::{Addr, wide};
use modload_loader::{
    Check, Exports, External, Externals, ForcedUnload, HostOperations, ModuleLibrary, Onlooker, Policy, Rule, sentence,
};
use modload_paravirt::{LINUX_OPERATIONS, Operations};
use modload_text::ArenaError;
use thiserror::Error;

use crate::built_in::BuiltInOptions;
use crate::c_api;
use crate::host::Host;
use crate::own_symbols::own_symbols;

/// Code for processor features that this machine does not have.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("this machine does not have {}", missing_features(.missing))]
pub struct OtherCpu {
    /// The missing features.
    pub missing: Vec<&'static str>,
}

impl fmt::Debug for OtherCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// Lists the names of features, with the reason for each feature that no process can use.
fn missing_features(missing: &[&'static str]) -> String {
    let shown = missing.iter().map(|name| match Features::why_not_in_user_space(name) {
        Some(why) => format!("{name} (no process has it: {why})"),
        None => (*name).to_owned(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// A function or a variable that a host exports to modules.
///
/// ```
/// use modload::{Export, Host};
///
/// extern "C" fn log_level() -> i32 { 4 }
///
/// # fn main() -> Result<(), modload::error::ArenaError> {
/// let address = log_level as extern "C" fn() -> i32 as *const ();
/// let host = Host::builder().export("log_level", Export::new(address).crc(0x1234_5678)).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Export(External);

impl Export {
    /// An export of the function or the variable at this address.
    #[must_use]
    pub fn new<T>(address: *const T) -> Export {
        Export(External { addr: Addr::new(wide(address.expose_provenance())), gpl_only: false, crc: None })
    }

    /// Gives the symbol a CRC. The `__versions` section of a module that uses the symbol must have the same CRC.
    #[must_use]
    pub fn crc(self, crc: u32) -> Export {
        Export(External { crc: Some(crc), ..self.0 })
    }
}

impl<T> From<*const T> for Export {
    fn from(address: *const T) -> Export {
        Export::new(address)
    }
}

/// Makes a [`Host`].
///
/// ```
/// use modload::{Check, Host, Image, Rule};
///
/// # #[cfg(feature = "process-symbols")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // The C library's functions are offered to modules, and a module needs no licence that is compatible with the GPL.
/// let host = Host::builder().process_symbols().policy(Rule::License, Check::Off).build()?;
///
/// // `object` is the compiled form of: int puts(const char *); int greet(void) { return puts("hello"); }
/// # let object = modload_fixtures::c_object("int puts(const char *); int greet(void) { return puts(\"hello\"); }")?;
/// // SAFETY: the object is the code above.
/// let greet = host.load(&unsafe { Image::trusted(object) }.named("greet"))?;
/// // SAFETY: `greet` takes no arguments.
/// assert!(unsafe { greet.call("greet", &[])? } > 0);
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "process-symbols"))]
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct HostBuilder {
    pub(crate) symbols: HostSymbols,
    pub(crate) policy: Policy,
    pub(crate) onlookers: Vec<Arc<dyn Onlooker>>,
    pub(crate) built_in: BuiltInOptions,
}

impl Default for HostBuilder {
    fn default() -> HostBuilder {
        let mut symbols = HostSymbols { exports: HashMap::new(), process: ProcessSymbols::NONE, libraries: Vec::new() };
        let exports = c_api::exports();
        #[cfg(feature = "livepatch")]
        let exports = exports.chain([crate::patch_c_api::export()]);
        for (name, addr) in exports {
            symbols.exports.insert(name.as_bytes().into(), External { addr, gpl_only: false, crc: None });
        }
        HostBuilder { symbols, policy: Policy::default(), onlookers: Vec::new(), built_in: BuiltInOptions::default() }
    }
}

impl HostBuilder {
    /// Exports a function or a variable to modules: its address, or an [`Export`] that says more. The host's export takes
    /// precedence over a module's export of the same name.
    #[must_use]
    pub fn export(mut self, name: &str, export: impl Into<Export>) -> HostBuilder {
        self.symbols.exports.insert(name.as_bytes().into(), export.into().0);
        self
    }

    /// Exports a function or a variable to modules with a GPL-compatible licence only. Linux's `EXPORT_SYMBOL_GPL`.
    #[must_use]
    pub fn export_gpl(self, name: &str, export: impl Into<Export>) -> HostBuilder {
        let Export(external) = export.into();
        self.export(name, Export(External { gpl_only: true, ..external }))
    }

    /// Sets the required `vermagic=` of modules. By default vermagic is not checked.
    #[must_use]
    pub fn vermagic(mut self, expected: impl Into<String>) -> HostBuilder {
        self.policy.expected_vermagic = Some(expected.into());
        self
    }

    /// Adds a module's name to the blocklist.
    #[must_use]
    pub fn block(mut self, name: impl Into<String>) -> HostBuilder {
        self.policy.blocked.insert(name.into());
        self
    }

    /// Sets how a module that breaks a rule is treated: accepted, accepted with a warning, or refused.
    #[must_use]
    pub fn policy(mut self, rule: Rule, check: Check) -> HostBuilder {
        *self.policy.check_mut(rule) = check;
        self
    }

    /// Lets modules use all global symbols of modules that declare no exports.
    #[must_use]
    pub fn export_globals(mut self) -> HostBuilder {
        self.policy.exports = Exports::GlobalsOfPlainObjects;
        self
    }

    /// Lets [`Host::unload_by_force`] unload modules that are in use, as Linux's `CONFIG_MODULE_FORCE_UNLOAD` does.
    #[must_use]
    pub fn allow_forced_unload(mut self) -> HostBuilder {
        self.policy.forced_unload = ForcedUnload::Allowed;
        self
    }

    /// Sets the largest size of a module in memory, in bytes. The default is 1 GiB.
    #[must_use]
    pub fn size_limit(mut self, bytes: u64) -> HostBuilder {
        self.policy.size_limit = bytes;
        self
    }

    /// Sets the file descriptor for the one-line message about a call into text that is not published yet, or not
    /// mapped any more. The message is written before SIGTRAP is handled as usual. The default is 2.
    #[must_use]
    pub fn trap_descriptor(mut self, descriptor: std::os::fd::RawFd) -> HostBuilder {
        self.policy.trap_descriptor = descriptor;
        self
    }

    /// Adapts the code of modules to these features, and to those that user space must have
    /// ([`Features::for_user_space`]), instead of all features of this machine.
    ///
    /// # Errors
    /// [`OtherCpu`]: this machine lacks some of the features, so that code for them might not run.
    pub fn cpu(mut self, features: Features) -> Result<HostBuilder, OtherCpu> {
        let missing = features.beyond(&Features::of_this_machine());
        if !missing.is_empty() {
            return Err(OtherCpu { missing });
        }
        self.policy.rewriting.facts.features = features.for_user_space();
        Ok(self)
    }

    /// Offers Linux's operations table `pv_ops`, and rewrites the calls through the table that `.parainstructions`
    /// lists, as [`modload_paravirt::Operations::user`] says. A module that uses an operation which only a kernel can
    /// do is refused by name.
    #[must_use]
    pub fn linux_operations(mut self) -> HostBuilder {
        // The table itself is empty: a call without a record would jump to address 0.
        let entries = vec![Addr::NULL; LINUX_OPERATIONS];
        self.policy.rewriting.host_operations = Some(HostOperations { symbol: PV_OPS.into(), entries });
        self.policy.rewriting.operations = Operations::user(None);
        self
    }

    /// Offers an operations table: functions that modules call through the table, in C `extern const struct host_ops
    /// host_ops __attribute__((visibility("hidden")))` and `host_ops.function(..)`. Each module gets its own copy. If a
    /// function is in reach of the module (for example because it lies in another module), its calls become direct
    /// calls when the module is loaded. Otherwise they stay calls through the table.
    #[must_use]
    pub fn operations(mut self, name: impl Into<String>, functions: &[*const ()]) -> HostBuilder {
        let address = |function: &*const ()| Addr::new(wide(function.expose_provenance()));
        let entries = functions.iter().map(address).collect();
        self.policy.rewriting.host_operations = Some(HostOperations { symbol: name.into(), entries });
        self
    }

    /// Makes the host, and the process's arena with the first host.
    ///
    /// # Errors
    /// [`ArenaError`] names the system rule that forbids the arena.
    pub fn build(mut self) -> Result<Host, ArenaError> {
        for (name, addr) in self.built_in.symbols()? {
            self.symbols.place(name, addr);
        }
        Host::new(Arc::new(self.symbols), self.policy, self.onlookers, &self.built_in)
    }
}

/// How a host finds symbols of the process.
#[derive(Clone, Copy)]
pub(crate) struct ProcessSymbols {
    /// Finds symbols that neither the host nor a module exports.
    pub(crate) find: fn(&[u8]) -> Option<External>,
    /// Returns the contents of constant objects.
    pub(crate) constant: fn(&[u8], Addr) -> Option<Vec<u8>>,
    /// Opens libraries that modules ask for.
    pub(crate) open: fn(&str) -> Result<Arc<dyn ModuleLibrary>, String>,
}

impl ProcessSymbols {
    const NONE: ProcessSymbols = ProcessSymbols {
        find: |_| None,
        constant: |_, _| None,
        open: |_| Err("this host does not offer the symbols of its process, and opens no libraries for modules".into()),
    };
}

impl fmt::Debug for ProcessSymbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcessSymbols")
    }
}

#[derive(Debug)]
pub(crate) struct HostSymbols {
    exports: HashMap<Box<[u8]>, External>,
    pub(crate) process: ProcessSymbols,
    /// Libraries that are searched after that, in this order.
    pub(crate) libraries: Vec<Arc<dyn ModuleLibrary>>,
}

impl HostSymbols {
    fn place(&mut self, name: String, addr: Addr) {
        self.exports.insert(name.into_bytes().into(), External { addr, gpl_only: false, crc: None });
    }
}

impl Externals for HostSymbols {
    fn exported(&self, name: &[u8]) -> Option<External> {
        self.exports.get(name).copied()
    }

    fn fallback(&self, name: &[u8]) -> Option<External> {
        (self.process.find)(name).or_else(|| self.libraries.iter().find_map(|library| library.symbol(name)))
    }

    fn library(&self, name: &str) -> Result<Arc<dyn ModuleLibrary>, String> {
        (self.process.open)(name)
    }

    fn constant(&self, name: &[u8], at: Addr) -> Option<Vec<u8>> {
        (self.process.constant)(name, at)
    }

    fn own<'n>(&self, names: &BTreeSet<&'n [u8]>) -> BTreeMap<&'n [u8], Vec<Addr>> {
        let mut own = own_symbols(names);
        let exported = names.iter().filter_map(|name| Some((*name, vec![self.exports.get(*name)?.addr])));
        own.extend(exported);
        own
    }

    fn names(&self) -> Vec<String> {
        self.exports.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }
}
