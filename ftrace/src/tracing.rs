//! Registers and unregisters tracers.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use modload_edit::Addr;
use modload_text::TrapMask;

use crate::clock::Clock;
use crate::error::TraceError;
use crate::filter::Filter;
use crate::identity::{FunctionOwner, TraceHostId, TracerId};
use crate::recording::{FunctionTrace, TraceOptions};
use crate::sites::{Traceable, why_no_returns};
use crate::stubs::TraceStubs;
use crate::switch::Changed;
use crate::table::{
    HostResources, ModuleFunctions, ModuleTextState, RegisteredTracer, TraceEntry, TraceTable, install, table,
};
use crate::trace::TracedFunction;
use crate::trampoline::STUB;
use crate::trampoline::call::{Redirecting, Tracer, TracerMember};
use crate::trampoline::host::{HostFunction, HostPart};
use crate::trampoline::thread_local::{TracerActivity, is_nested, tracer_activities};
use crate::trampoline::variants::{SavedRegisters, VectorWidth};

/// The module name of the host's own functions, as in Linux's livepatch.
pub const HOST: &str = "vmlinux";

/// The subscriber for function tracing of one host's modules. Copies are the same subscriber.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ftrace {
    pub(crate) host: TraceHostId,
}

impl Default for Ftrace {
    fn default() -> Ftrace {
        Ftrace::new()
    }
}

/// A registered tracer. Dropping this value unregisters the tracer, and waits until no thread is in the tracer any
/// more. If the value is dropped from within a tracer, the drop returns at once, and the tracer itself is dropped
/// later, at the next [`sweep`] that finds no thread in it.
#[derive(Debug)]
#[must_use = "dropping it takes the tracer back"]
pub struct Tracing {
    id: TracerId,
}

impl Ftrace {
    /// Makes the subscriber of a new host.
    #[must_use]
    pub fn new() -> Ftrace {
        Clock::note();
        install();
        Ftrace { host: TraceHostId::new() }
    }

    /// Registers a tracer for all calls of the functions that a filter selects, in loaded modules and in modules that
    /// are loaded later.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.register(filter, TracerMember::tracer(tracer, SavedRegisters::Arguments), false)
    }

    /// Like [`Ftrace::trace`], with all general registers in [`crate::Call::registers`].
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace_with_registers(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.register(filter, TracerMember::tracer(tracer, SavedRegisters::All), false)
    }

    /// Redirects the calls of functions, as `redirecting` says.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::Redirected`]: a function is redirected already.
    pub fn redirect(&self, filter: Filter, redirecting: Redirecting) -> Result<Tracing, TraceError> {
        self.register(filter, redirecting.member, true)
    }

    fn register(&self, filter: Filter, member: TracerMember, redirects: bool) -> Result<Tracing, TraceError> {
        let mut table = table();
        let id = table.new_tracer();
        table.tracers.push(RegisteredTracer { id, host: self.host, filter, member, redirects });
        let switched = table.add_tracer(id).and_then(|changed| table.switch(&changed));
        if let Err(error) = switched {
            table.take_back(id);
            return Err(error);
        }
        Ok(Tracing { id })
    }

    /// Records the selected functions, in all threads. `name` names the addresses that calls come from.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::UnderWay`]: there is a recording already.
    pub fn record(
        &self,
        options: &TraceOptions,
        name: impl Fn(Addr) -> Option<String> + Send + Sync + 'static,
    ) -> Result<FunctionTrace, TraceError> {
        FunctionTrace::start(self.host, options, Arc::new(name))
    }

    /// Makes functions of the host's own traceable, as functions of a module `vmlinux`. The functions are registered
    /// until [`Ftrace::leave`].
    ///
    /// Five one-byte NOPs at an entry become one NOP while all threads are held.
    ///
    /// # Errors
    /// [`TraceError`]. A function that cannot be traced is no error: [`Ftrace::traceable`] lists it.
    pub fn register_host_functions(&self, functions: Vec<HostFunction>) -> Result<(), TraceError> {
        let mut table = table();
        let owner = FunctionOwner::Host(self.host);
        let known = |at| {
            table
                .parts
                .values()
                .filter(|part| part.own.is_some())
                .flat_map(|part| &part.entries)
                .find(|entry| entry.site.entry == at)
        };
        if table.parts.contains_key(&owner) {
            let function = functions.first().map(|function| function.name().to_owned()).unwrap_or_default();
            return Err(TraceError::Registered { function });
        }
        if let Some(entry) = functions.iter().find_map(|function| known(function.at())) {
            return Err(TraceError::Registered { function: entry.site.name.to_string() });
        }
        let registered = HostPart::register(functions, STUB, table.trap_mask)?;
        // The annex is never freed: threads may be in its stubs at any time, and the stubs are used again if the same
        // functions are registered again.
        let stubs = match registered.annex.map(std::mem::ManuallyDrop::new) {
            Some(annex) => TraceStubs::at(annex.addr(), annex.len() / STUB)?,
            None => TraceStubs::new(),
        };
        let part = ModuleFunctions {
            host: self.host,
            module: HOST.into(),
            phase: ModuleTextState::Published,
            width: VectorWidth::of_this_machine(),
            entries: registered.sites.into_iter().map(TraceEntry::new).collect(),
            untraceable: registered.untraceable,
            own: Some(HostResources { stubs, _texts: registered.texts }),
        };
        table.parts.insert(owner, part);
        let wanted = table.mark_new_functions(owner);
        let all = (0..table.parts[&owner].entries.len()).collect();
        let entered = match wanted {
            Ok(()) => table.switch(&vec![(owner, all)]),
            Err(function) => Err(TraceError::Redirected { module: HOST.to_owned(), function }),
        };
        if entered.is_err() {
            table.restore_nops(owner);
            table.forget(owner);
        }
        entered
    }

    /// Forgets the host's own functions: their sites become NOPs again.
    pub fn leave(&self) {
        let mut table = table();
        table.restore_nops(FunctionOwner::Host(self.host));
        table.forget(FunctionOwner::Host(self.host));
    }

    /// Returns the entries of the host's own functions of this name, in the order of their addresses.
    #[must_use]
    pub fn host_functions(&self, name: &str) -> Vec<Addr> {
        let table = table();
        let part = table.parts.get(&FunctionOwner::Host(self.host));
        let entries = part.into_iter().flat_map(|part| &part.entries);
        entries.filter(|entry| &*entry.site.name == name).map(|entry| entry.site.entry).collect()
    }

    /// Returns the functions of the host's modules that have a record, in the order of modules and addresses: functions
    /// that can be traced, and functions that cannot.
    #[must_use]
    pub fn traceable(&self) -> Vec<Traceable> {
        let table = table();
        let mut all = Vec::new();
        for part in table.parts.values().filter(|part| part.host == self.host) {
            let function = |name: &str| TracedFunction { module: part.module.to_string(), name: name.to_owned() };
            let sites = part.entries.iter().map(|entry| (&entry.site.name, None));
            let others = part.untraceable.iter().map(|(name, why)| (name, Some(why.clone())));
            all.extend(sites.chain(others).map(|(name, why_not)| {
                let why_no_returns = why_no_returns(name).filter(|_| why_not.is_none());
                Traceable { function: function(name), why_not, why_no_returns }
            }));
        }
        all
    }
}

impl TraceTable {
    /// Unregisters a tracer: no call is shown to the tracer any more. Threads may still be in the tracer.
    fn take_back(&mut self, id: TracerId) {
        let changed: Changed = self.remove_tracer(id);
        if let Err(error) = self.switch(&changed) {
            // These sites lead to stubs of functions that do not have this tracer any more.
            ::tracing::warn!(%error, "a tracer is unregistered, but its call sites could not be changed back");
        }
        self.tracers.retain(|tracer| tracer.id != id);
        self.retire(id);
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        const FIRST: Duration = Duration::from_micros(50);
        const MOST: Duration = Duration::from_millis(10);
        table().take_back(self.id);
        let mut pause = FIRST;
        loop {
            sweep();
            let waits = table().retired.iter().any(|(tracers, _)| tracers.contains(&self.id));
            if !waits || is_nested() {
                return;
            }
            sleep(pause);
            pause = (pause * 2).min(MOST);
        }
    }
}

/// Drops tracers that were unregistered while a thread was in them, if no thread is in them any more. Returns the
/// number of remaining lists of tracers.
pub fn sweep() -> usize {
    let candidates: Vec<_> = table().retired.iter().map(|(_, group)| group.set()).collect();
    if candidates.is_empty() {
        return 0;
    }
    // No lock is held, because a thread that is asked may hold any lock.
    let activities = match tracer_activities() {
        Ok(activities) => activities,
        Err(error) => {
            ::tracing::warn!(%error, "threads cannot be asked whether they are in a tracer");
            return candidates.len();
        }
    };
    if activities.contains(&TracerActivity::Something) {
        return candidates.len();
    }
    let mut table = table();
    let is_free = |set| candidates.contains(&set) && !activities.contains(&TracerActivity::Running(set));
    let free: Vec<_> = table.retired.extract_if(.., |(_, group)| is_free(group.set())).collect();
    let left = table.retired.len();
    // Values that tracers own are dropped without the lock.
    drop(table);
    drop(free);
    left
}

/// Sets how text is poked when tracing is switched, in the whole process. The default is [`TrapMask::Checked`].
pub fn set_trap_mask(mask: TrapMask) {
    table().trap_mask = mask;
}
