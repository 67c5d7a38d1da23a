//! The builder of a host: the symbols that it offers and the modules that it allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use modload_abi::section::{self, PV_OPS_SYMBOL as PV_OPS};
use modload_alternatives::Features;
use modload_edit::{Addr, wide};
use modload_livepatch::Transition;
use modload_loader::{Check, Exports, External, Externals, ForcedUnload, HostOperations, Onlooker, Policy, Rule};
use modload_paravirt::{LINUX_OPERATIONS, Operations};
use modload_static_keys::{StaticCall, StaticKey};
use modload_text::{ArenaError, TrapMask};
use modload_threads::Error as SignalError;
use thiserror::Error;

use crate::debugger::Debugger;
use crate::host::Host;
use crate::own_symbols::own_symbols;
use crate::perf_map::{PerfMap, PerfMapError};
use crate::{c_api, c_library, foreign};

/// Code for processor features that this machine does not have.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("this machine does not have {}", missing_features(.missing))]
pub struct OtherCpu {
    /// The missing features.
    pub missing: Vec<&'static str>,
}

/// Lists the names of features, with the reason for each feature that no process can use.
fn missing_features(missing: &[&'static str]) -> String {
    let shown = missing.iter().map(|name| match Features::why_not_in_user_space(name) {
        Some(why) => format!("{name} (no process has it: {why})"),
        None => (*name).to_owned(),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Makes a [`Host`].
#[derive(Debug)]
pub struct HostBuilder {
    symbols: HostSymbols,
    keys: Vec<(String, &'static StaticKey)>,
    calls: Vec<(String, &'static StaticCall)>,
    pub(crate) policy: Policy,
    onlookers: Vec<Arc<dyn Onlooker>>,
    transition: Transition,
}

impl Default for HostBuilder {
    fn default() -> HostBuilder {
        let mut symbols = HostSymbols { exports: HashMap::new(), process: ProcessSymbols::Hidden };
        for (name, addr) in c_api::exports() {
            symbols.exports.insert(name.as_bytes().into(), External { addr, gpl_only: false, crc: None });
        }
        HostBuilder {
            symbols,
            keys: Vec::new(),
            calls: Vec::new(),
            policy: Policy::default(),
            onlookers: Vec::new(),
            transition: Transition::Anywhere,
        }
    }
}

impl HostBuilder {
    /// Exports a function or a variable to modules. This export takes precedence over a module's export of the same
    /// name.
    #[must_use]
    pub fn export<T>(self, name: &str, address: *const T) -> HostBuilder {
        self.add(name, address, false)
    }

    /// Exports a function or a variable to modules with a GPL-compatible licence only.
    #[must_use]
    pub fn export_gpl<T>(self, name: &str, address: *const T) -> HostBuilder {
        self.add(name, address, true)
    }

    fn add<T>(mut self, name: &str, address: *const T, gpl_only: bool) -> HostBuilder {
        let addr = Addr::new(wide(address.expose_provenance()));
        self.symbols.exports.insert(name.as_bytes().into(), External { addr, gpl_only, crc: None });
        self
    }

    /// Sets the CRC of an exported symbol. A module that uses the symbol must have the same CRC in its `__versions`.
    /// Does nothing if the symbol has not been exported before this call.
    #[must_use]
    pub fn version(mut self, name: &str, crc: u32) -> HostBuilder {
        if let Some(export) = self.symbols.exports.get_mut(name.as_bytes()) {
            export.crc = Some(crc);
        }
        self
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

    /// Offers the process's own dynamic symbols (of the C library, and the program's exported ones) for names that
    /// neither the host nor a module exports.
    #[must_use]
    pub fn process_symbols(mut self) -> HostBuilder {
        self.symbols.process = ProcessSymbols::Offered;
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

    /// Tells gdb about each module through gdb's JIT interface: gdb then shows function names, unwinds frames and sets
    /// breakpoints (also before the module is loaded, with `set breakpoint pending on`). With debug information it also
    /// shows lines and variables. gdb knows a module from before its first instruction until after its last, also if
    /// gdb attaches later.
    ///
    /// Each module then keeps a copy of its symbols and debug information in memory. gdb needs some time per module: a
    /// load under gdb stops the process.
    #[must_use]
    pub fn debugger(mut self) -> HostBuilder {
        self.onlookers.push(Arc::new(Debugger));
        self
    }

    /// Writes the functions of each module to `/tmp/perf-PID.map`, where `perf report` looks for them. Only this user
    /// can read the file, and it stays after the process has ended, for the report. If a second module is loaded at the
    /// addresses of an unloaded one, all samples there count as the second module's.
    ///
    /// # Errors
    /// [`PerfMapError`]: the file cannot be opened, or belongs to another user.
    pub fn perf_map(mut self) -> Result<HostBuilder, PerfMapError> {
        self.onlookers.push(Arc::new(PerfMap::open()?));
        Ok(self)
    }

    /// Exports a static key of the host. Modules branch on it with `static_branch_likely` and `static_branch_unlikely`.
    #[must_use]
    pub fn static_key(mut self, name: &str, key: &'static StaticKey) -> HostBuilder {
        self.keys.push((name.to_owned(), key));
        self
    }

    /// Exports a static call of the host, which modules call with `static_call`: its key as `__SCK__NAME` and its
    /// trampoline as `__SCT__NAME`. The static call has no function until [`set_static_call`](crate::set_static_call).
    #[must_use]
    pub fn static_call(mut self, name: &str, call: &'static StaticCall) -> HostBuilder {
        self.calls.push((name.to_owned(), call));
        self
    }

    /// Sets the real-time signal with which threads are stopped for a short time, in the whole process: to change text
    /// that traps cannot change, and to find out whether a thread is in a module. The default is signal 33, which glibc
    /// keeps unblocked in every thread. Threads may block a signal that is set here.
    ///
    /// # Errors
    /// [`SignalError`]: the number is not a real-time signal, the signal is in use, or another signal has been used
    /// already.
    pub fn signal(self, signal: i32) -> Result<HostBuilder, SignalError> {
        modload_threads::use_signal(signal)?;
        Ok(self)
    }

    /// Sets how text is poked when keys are switched and functions traced, in the whole process from now on. The
    /// default is [`TrapMask::Checked`].
    #[must_use]
    pub fn trap_mask(self, mask: TrapMask) -> HostBuilder {
        modload_static_keys::set_trap_mask(mask);
        modload_ftrace::set_trap_mask(mask);
        self
    }

    /// Sets how threads migrate to the functions of this host's live patches. The default is [`Transition::Anywhere`].
    #[must_use]
    pub fn transition(mut self, how: Transition) -> HostBuilder {
        self.transition = how;
        self
    }

    /// Makes the host, and the process's arena with the first host.
    ///
    /// # Errors
    /// [`ArenaError`] names the system rule that forbids the arena.
    pub fn build(mut self) -> Result<Host, ArenaError> {
        // These symbols are in the arena, within reach of every module's code.
        self.symbols.place("__static_call_return0".into(), modload_static_keys::return0()?);
        for (name, key) in std::mem::take(&mut self.keys) {
            self.symbols.place(name, key.addr()?);
        }
        for (name, call) in std::mem::take(&mut self.calls) {
            let (key, trampoline) = call.addrs()?;
            self.symbols.place(format!("{}{name}", section::STATIC_CALL_KEY_PREFIX), key);
            self.symbols.place(format!("{}{name}", section::STATIC_CALL_TRAMPOLINE_PREFIX), trampoline);
        }
        Host::new(Arc::new(self.symbols), self.policy, self.onlookers, self.transition)
    }
}

#[derive(Debug)]
struct HostSymbols {
    exports: HashMap<Box<[u8]>, External>,
    process: ProcessSymbols,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ProcessSymbols {
    Offered,
    Hidden,
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
        match self.process {
            ProcessSymbols::Offered => foreign::process_symbol(name).map(|original| {
                let addr = c_library::instead_of(name, original);
                External { addr, gpl_only: false, crc: None }
            }),
            ProcessSymbols::Hidden => None,
        }
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
