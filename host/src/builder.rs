//! What a host offers and allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use modload_abi::section::{self, PV_OPS_SYMBOL as PV_OPS};
use modload_alternatives::Features;
use modload_edit::{Addr, wide};
use modload_livepatch::Transition;
use modload_loader::{
    Check, Exports, External, Externals, ForcedUnload, HostOperations, Onlooker, Policy, Rule, sentence,
};
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

/// Code for a processor that this machine is not.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("this machine does not have {}", lacking(.missing))]
pub struct OtherCpu {
    /// The features that it lacks.
    pub missing: Vec<&'static str>,
}

impl fmt::Debug for OtherCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// The names of features, each with the reason if user space must not have it anywhere.
fn lacking(missing: &[&'static str]) -> String {
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
        let mut symbols = HostSymbols { exports: HashMap::new(), process: Process::Hidden };
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
    /// Exports a function or a variable to modules. It comes before a module's export of the same name.
    #[must_use]
    pub fn export<T>(self, name: &str, address: *const T) -> HostBuilder {
        self.add(name, address, false)
    }

    /// Exports it to modules with a GPL-compatible licence only.
    #[must_use]
    pub fn export_gpl<T>(self, name: &str, address: *const T) -> HostBuilder {
        self.add(name, address, true)
    }

    fn add<T>(mut self, name: &str, address: *const T, gpl_only: bool) -> HostBuilder {
        let addr = Addr::new(wide(address.expose_provenance()));
        self.symbols.exports.insert(name.as_bytes().into(), External { addr, gpl_only, crc: None });
        self
    }

    /// Gives a symbol that has been exported a CRC, which the `__versions` of a module that uses it must have, too. What
    /// has not been exported before this call has none.
    #[must_use]
    pub fn version(mut self, name: &str, crc: u32) -> HostBuilder {
        if let Some(export) = self.symbols.exports.get_mut(name.as_bytes()) {
            export.crc = Some(crc);
        }
        self
    }

    /// What `vermagic=` of a module must be. If nothing is said, none is looked at.
    #[must_use]
    pub fn vermagic(mut self, expected: impl Into<String>) -> HostBuilder {
        self.policy.expected_vermagic = Some(expected.into());
        self
    }

    /// Puts a module's name on the blocklist.
    #[must_use]
    pub fn block(mut self, name: impl Into<String>) -> HostBuilder {
        self.policy.blocked.insert(name.into());
        self
    }

    /// What is done about a module that breaks a rule: nothing, a warning or a refusal.
    #[must_use]
    pub fn policy(mut self, rule: Rule, check: Check) -> HostBuilder {
        *self.policy.check_mut(rule) = check;
        self
    }

    /// Offers the process's own dynamic symbols (the C library's, the program's exported ones) for what neither the
    /// host nor a module exports.
    #[must_use]
    pub fn process_symbols(mut self) -> HostBuilder {
        self.symbols.process = Process::Offered;
        self
    }

    /// Lets modules use all global symbols of modules that declare no exports.
    #[must_use]
    pub fn export_globals(mut self) -> HostBuilder {
        self.policy.exports = Exports::GlobalsOfPlainObjects;
        self
    }

    /// Lets [`Host::unload_by_force`] unload modules that are held, as Linux's `CONFIG_MODULE_FORCE_UNLOAD` does.
    #[must_use]
    pub fn allow_forced_unload(mut self) -> HostBuilder {
        self.policy.forced_unload = ForcedUnload::Allowed;
        self
    }

    /// The largest size of a module in memory, in bytes. 1 GiB if nothing else is said.
    #[must_use]
    pub fn size_limit(mut self, bytes: u64) -> HostBuilder {
        self.policy.size_limit = bytes;
        self
    }

    /// The file descriptor that takes the one line about a call into text that is not published yet or not there any
    /// more, before SIGTRAP takes its course. 2 if nothing else is said.
    #[must_use]
    pub fn trap_descriptor(mut self, descriptor: std::os::fd::RawFd) -> HostBuilder {
        self.policy.trap_descriptor = descriptor;
        self
    }

    /// Makes modules' code for these features instead of all that this machine has, and for those that user space must have
    /// ([`Features::for_user_space`]).
    ///
    /// # Errors
    /// [`OtherCpu`]: this machine does not have all of them, and code that is made for them might not run.
    pub fn cpu(mut self, features: Features) -> Result<HostBuilder, OtherCpu> {
        let missing = features.beyond(&Features::of_this_machine());
        if !missing.is_empty() {
            return Err(OtherCpu { missing });
        }
        self.policy.rewriting.facts.features = features.for_user_space();
        Ok(self)
    }

    /// Offers Linux's operations table `pv_ops`, and makes modules' calls through it, of which `.parainstructions` tells,
    /// what a process can make of them: [`modload_paravirt::Operations::user`]. What only a kernel can do is refused by
    /// name.
    #[must_use]
    pub fn linux_operations(mut self) -> HostBuilder {
        // The table itself is empty: a call of which no record tells goes nowhere.
        let entries = vec![Addr::NULL; LINUX_OPERATIONS];
        self.policy.rewriting.host_operations = Some(HostOperations { symbol: PV_OPS.into(), entries });
        self.policy.rewriting.operations = Operations::user(None);
        self
    }

    /// Offers an operations table: functions that modules call through it, in C
    /// `extern const struct host_ops host_ops __attribute__((visibility("hidden")))` and `host_ops.function(..)`. Each
    /// module gets a copy of its own. Where a function is in reach of the module (it
    /// is a module's of this process, say), its calls become direct ones when the module is loaded; elsewhere they stay
    /// calls through the table.
    #[must_use]
    pub fn operations(mut self, name: impl Into<String>, functions: &[*const ()]) -> HostBuilder {
        let address = |function: &*const ()| Addr::new(wide(function.expose_provenance()));
        let entries = functions.iter().map(address).collect();
        self.policy.rewriting.host_operations = Some(HostOperations { symbol: name.into(), entries });
        self
    }

    /// Tells gdb of each module, by its JIT interface: functions have names in it, frames can be unwound, breakpoints can
    /// be set (before the module is loaded, too, where `set breakpoint pending on` says so), and with debug information
    /// there are lines and variables. A module is known from before its first instruction until after its last, and to a
    /// gdb that attaches later as well.
    ///
    /// Each module then keeps a copy of its symbols and its debug information in memory. gdb itself takes a while for
    /// each: a load under gdb stops the process.
    #[must_use]
    pub fn debugger(mut self) -> HostBuilder {
        self.onlookers.push(Arc::new(Debugger));
        self
    }

    /// Writes the functions of each module into `/tmp/perf-PID.map`, where `perf report` looks for them. The file is this
    /// user's alone, and stays when the process ends, for the report to be made. Addresses that a second module gets
    /// after a first one has gone count as the second's, whenever a sample was taken.
    ///
    /// # Errors
    /// [`PerfMapError`]: it cannot be opened, or is somebody else's.
    pub fn perf_map(mut self) -> Result<HostBuilder, PerfMapError> {
        self.onlookers.push(Arc::new(PerfMap::open()?));
        Ok(self)
    }

    /// Exports a static key of the host's: modules branch on it with `static_branch_likely` and `static_branch_unlikely`.
    #[must_use]
    pub fn static_key(mut self, name: &str, key: &'static StaticKey) -> HostBuilder {
        self.keys.push((name.to_owned(), key));
        self
    }

    /// Exports a static call of the host's, for modules to call with `static_call`: its key as `__SCK__NAME` and its
    /// trampoline as `__SCT__NAME`. It calls nothing until [`set_static_call`](crate::set_static_call).
    #[must_use]
    pub fn static_call(mut self, name: &str, call: &'static StaticCall) -> HostBuilder {
        self.calls.push((name.to_owned(), call));
        self
    }

    /// Names the real-time signal by which threads are stopped for a moment, in the whole process: where text cannot be changed
    /// by traps, and where it must be known whether a thread is in a module. Without this it is signal 33, which glibc keeps open in
    /// every thread; threads may block one that is named here.
    ///
    /// # Errors
    /// [`SignalError`]: it is none, in use, or another one is being used already.
    pub fn signal(self, signal: i32) -> Result<HostBuilder, SignalError> {
        modload_threads::use_signal(signal)?;
        Ok(self)
    }

    /// How text is poked when keys are switched, in the whole process from now on. [`TrapMask::Checked`] if nothing else
    /// is said.
    #[must_use]
    pub fn trap_mask(self, mask: TrapMask) -> HostBuilder {
        modload_static_keys::set_trap_mask(mask);
        modload_ftrace::set_trap_mask(mask);
        self
    }

    /// How threads go over to what this host's live patches bring. [`Transition::Anywhere`] if nothing else is said.
    #[must_use]
    pub fn transition(mut self, how: Transition) -> HostBuilder {
        self.transition = how;
        self
    }

    /// Makes the host, and the process's arena if this is the first one.
    ///
    /// # Errors
    /// [`ArenaError`] names the rule of the system that stands in the way.
    pub fn build(mut self) -> Result<Host, ArenaError> {
        // In the arena, where every module's code reaches them.
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
    process: Process,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Process {
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
            Process::Offered => foreign::process_symbol(name).map(|original| {
                let addr = c_library::instead_of(name, original);
                External { addr, gpl_only: false, crc: None }
            }),
            Process::Hidden => None,
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
