//! The host, which combines all parts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use modload_abi::modinfo::is_same_name;
use modload_edit::Addr;
use modload_ftrace::{
    Filter, FunctionTrace, HostFunction, Redirecting, TraceError, TraceOptions, Traceable, Tracer, Tracing,
};
use modload_livepatch::{Log, PatchError, PatchSpec, PatchStatus, Standing, Transition, Why};
use modload_loader::{
    Event, Explanation, Externals, Image, Input, Listening, LoadError, Loader, Membership, Module as ModuleInfo,
    Onlooker, Order, Policy, Recording, State, Subscriber, UnloadError,
};
use modload_text::{ArenaError, StripeUsage};
use modload_threads::boundary;

use crate::backtrace::Backtrace;
use crate::builder::HostBuilder;
use crate::c_api::{self, HostState};
use crate::foreign::Module;

/// A thread that blocks a transition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockingThread {
    /// The thread's id, as returned by gettid(2).
    pub thread: i32,
    /// The thread's name, escaped.
    pub name: String,
    /// The thread's state in one word, for example `sleeping`.
    pub state: String,
    /// The frame that blocked the transition at the last check, or `None` if it is not known.
    pub inside: Option<String>,
    /// Why the thread blocks the transition, as text: `is in slow+0x1c/0x40 [target]`, `has not come to a checkpoint`.
    pub why: String,
    /// The thread's current stack. Empty if threads migrate at checkpoints only, because such a thread is not held for
    /// this.
    pub backtrace: Backtrace,
}

/// Holds modules. Dropping the last handle of a host unloads the modules in reverse order. A module with a remaining
/// [`Module`] reference stays in memory, and an error is logged for it.
#[derive(Debug)]
pub struct Host {
    inner: Arc<HostState>,
}

impl Host {
    /// Returns a builder for a host without exports of its own.
    #[must_use]
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    pub(crate) fn new(
        externals: Arc<dyn Externals>,
        policy: Policy,
        onlookers: Vec<Arc<dyn Onlooker>>,
        transition: Transition,
    ) -> Result<Host, ArenaError> {
        let loader = onlookers.into_iter().fold(Loader::new(externals, policy)?, Loader::with_onlooker);
        let inner = Arc::new(HostState::new(loader, transition));
        c_api::enter(&inner);
        Ok(Host::handle(inner))
    }

    fn handle(inner: Arc<HostState>) -> Host {
        inner.handles.fetch_add(1, Ordering::Relaxed);
        Host { inner }
    }

    /// Loads a module. When this returns, the module is LIVE. If it fails, no trace of the module remains, except for
    /// memory with threads that the module has started: that memory is [quarantined](Host::quarantined). A cancellation
    /// of this thread while the module's code runs is an error of this load; afterwards it ends the thread, if the
    /// thread's own frames allow that ([`Module::call`]).
    ///
    /// # Errors
    /// [`LoadError`]: the module, the stage and the reason.
    pub fn load(&self, image: &Image<'_>) -> Result<Module, LoadError> {
        let loaded = self.inner.loader.load_module(image).map(Module::new);
        // Acts on a cancellation during init, which the load has caught.
        boundary::end_if_cancelled();
        loaded
    }

    /// Checks whether a link unit could be loaded into this host. Runs every stage of a load that comes before the coming chain,
    /// and discards the result. No code of the module runs, and no subscriber is called.
    ///
    /// # Errors
    /// [`LoadError`]: the stage in which a load would fail, and the reason.
    pub fn check(&self, inputs: &[Input<'_>], stem: &str) -> Result<(), LoadError> {
        self.inner.loader.check(inputs, stem)
    }

    /// Explains how a function of a link unit would change in this host: every byte that relocations, alternatives and
    /// the other engines would change, with the reason. Nothing is loaded, and no code of the module runs.
    ///
    /// # Errors
    /// [`LoadError`]: the stage that failed and the reason.
    pub fn explain(&self, inputs: &[Input<'_>], stem: &str, function: &str) -> Result<Explanation, LoadError> {
        self.inner.loader.explain(inputs, stem, function)
    }

    /// Unloads the module of this name.
    ///
    /// # Errors
    /// [`UnloadError`]: the module is in use (with its users), not LIVE, or not found.
    pub fn unload(&self, name: &str) -> Result<(), UnloadError> {
        let unloaded = self.inner.loader.unload_module(name);
        boundary::end_if_cancelled();
        unloaded
    }

    /// Like [`Host::unload`], but waits up to `at_most` until the module is not in use.
    ///
    /// # Errors
    /// [`UnloadError`]: the module is still in use (with its users), not LIVE, or not found.
    pub fn unload_within(&self, name: &str, at_most: Duration) -> Result<(), UnloadError> {
        self.inner.loader.unload_module_within(name, at_most)
    }

    /// Unloads a module despite [`Module`] references to it, if [`HostBuilder::allow_forced_unload`] was called. Its
    /// `exit` and the going chain run now. Its memory stays until the last reference is dropped: its symbols can still
    /// be called, but find everything as `exit` has left it. Taints the host with R. A module that other modules use is
    /// still refused.
    ///
    /// # Errors
    /// [`UnloadError`]: forced unloading is not allowed, other modules use the module, it is not LIVE, or not found.
    pub fn unload_by_force(&self, name: &str) -> Result<(), UnloadError> {
        self.inner.loader.unload_module_by_force(name)
    }

    /// Unloads all modules, the last one first. Returns the reason for each module that stays.
    #[must_use = "modules in use stay loaded"]
    pub fn unload_all(&self) -> Vec<UnloadError> {
        self.inner.loader.unload_all()
    }

    /// Returns the LIVE module of this name.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<Module> {
        self.inner.loader.module(name).map(Module::new)
    }

    /// Returns the names and states of all modules, in order of loading.
    #[must_use]
    pub fn modules(&self) -> Vec<(String, State)> {
        self.inner.loader.modules()
    }

    /// Returns all modules that are COMING, LIVE or GOING and their states, in order of loading. The result does not
    /// keep modules loaded; only a [`Module`] does.
    #[must_use]
    pub fn look(&self) -> Vec<(Arc<ModuleInfo>, State)> {
        self.inner.loader.look()
    }

    /// Returns the host's taint in Linux's letters: the taints of all modules that were ever LIVE in it, and R if a
    /// module in use was unloaded by force.
    #[must_use]
    pub fn taint(&self) -> String {
        self.inner.loader.taint()
    }

    /// Calls a function with each event of what this thread does with modules, as it happens. The function is called
    /// without any lock held, and the thread continues when it returns.
    #[must_use = "dropping it ends the listening"]
    pub fn listen(&self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Listening {
        self.inner.loader.listen(listener)
    }

    /// Adds a subscriber to the coming and the going chain.
    #[must_use = "dropping the membership leaves the chains"]
    pub fn subscribe(&self, name: &str, order: Order, subscriber: impl Subscriber + 'static) -> Membership {
        self.inner.loader.subscribe(name, order, Arc::new(subscriber))
    }

    /// Records the events of all modules of this host from now on.
    #[must_use]
    pub fn record(&self) -> Recording {
        self.inner.loader.record()
    }

    /// Calls a tracer for every call of the functions that match a filter, in all threads: functions of loaded modules,
    /// and of modules that are loaded later. `docs/tracing.md` says how modules must be compiled.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.ftrace.trace(filter, tracer)
    }

    /// Like [`Host::trace`], with all general registers.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace_with_registers(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.ftrace.trace_with_registers(filter, tracer)
    }

    /// Redirects calls of functions to other code. [`modload_ftrace::Redirecting`] is the promise that this is valid.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::Redirected`] if the calls are redirected already.
    pub fn redirect(&self, filter: Filter, redirecting: Redirecting) -> Result<Tracing, TraceError> {
        self.inner.ftrace.redirect(filter, redirecting)
    }

    /// Records calls, or entries and returns, of functions of this host's modules in all threads, until the returned
    /// value is dropped.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::UnderWay`] if another recording exists in the process: only one is possible.
    pub fn trace_functions(&self, options: &TraceOptions) -> Result<FunctionTrace, TraceError> {
        let host = self.downgrade();
        let name = move |at: Addr| {
            // No `Host` value is made here: the reader of a trace must not drop the last one.
            let inner = host.inner.upgrade()?;
            inner.loader.module_at(at.offset(-1))?.describe_return(at)
        };
        self.inner.ftrace.record(options, name)
    }

    /// Makes functions of the host itself traceable, as functions of a module `vmlinux`. Can be called once per host.
    ///
    /// # Errors
    /// [`TraceError`]. A function that cannot be traced is not an error: [`Host::traceable`] lists it with the reason.
    pub fn register_host_functions(&self, functions: Vec<HostFunction>) -> Result<(), TraceError> {
        self.inner.ftrace.register_host_functions(functions)
    }

    /// Returns the functions of all modules compiled for tracing: those that can be traced, and those that cannot, with
    /// the reason.
    #[must_use]
    pub fn traceable(&self) -> Vec<Traceable> {
        self.inner.ftrace.traceable()
    }

    /// Enables a patch: Linux's `klp_enable_patch`. Functions of loaded modules are redirected now, functions of other
    /// modules when those are loaded. When this returns, threads may still be migrating: see [`Host::patches`]. `keep`
    /// is the module with the replacement functions. It stays loaded as long as the patch is enabled.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn enable_patch(&self, name: &str, patch: PatchSpec, keep: Option<&Module>) -> Result<(), PatchError> {
        let keep = keep.map(Module::reference);
        let log: Log = match &keep {
            Some(module) => {
                let module = module.clone();
                Arc::new(move |line| module.log(line))
            }
            None => Arc::new(|_| {}),
        };
        self.inner.livepatch.enable(&self.inner.loader, name, patch, keep, log)
    }

    /// Disables a patch. If the patch is just being enabled, reverses its transition.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn disable_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.livepatch.disable(name)
    }

    /// Disables all patches, the newest first, each after the one before is gone, for at most `at_most`. Returns the
    /// patches that remain: a thread does not leave their functions, or does not reach a checkpoint. While this
    /// function waits, it calls [`Host::checkpoint`] for the calling thread.
    ///
    /// # Errors
    /// [`PatchError`]: a patch cannot be disabled.
    pub fn disable_patches(&self, at_most: Duration) -> Result<Vec<PatchStatus>, PatchError> {
        const LONGEST: Duration = Duration::from_millis(50);
        let (begun, mut pause) = (Instant::now(), Duration::from_micros(100));
        loop {
            let patches = self.patches()?;
            let Some(newest) = patches.last() else { return Ok(patches) };
            if newest.enabled {
                match self.disable_patch(&newest.name) {
                    // The patch has gone meanwhile, so there is nothing to wait for.
                    Ok(()) | Err(PatchError::Unknown(_)) => continue,
                    Err(PatchError::InTransition(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if begun.elapsed() >= at_most {
                return Ok(patches);
            }
            self.checkpoint();
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Reverses the transition of a patch.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn reverse_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.livepatch.reverse(name)
    }

    /// Ends the transition of a patch without waiting for the remaining threads. Threads in old code finish that code,
    /// which is kept for them.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn force_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.livepatch.force(name)
    }

    /// Returns the patches that are enabled or in transition, with the threads that block each transition.
    ///
    /// # Errors
    /// [`PatchError::Nested`].
    pub fn patches(&self) -> Result<Vec<PatchStatus>, PatchError> {
        self.inner.livepatch.status()
    }

    /// Returns the threads that block a patch's transition now. They are held for a short time to examine their stacks,
    /// except with [`Transition::CheckpointsOnly`].
    ///
    /// # Errors
    /// [`PatchError`]: there is no such patch, or threads cannot be held.
    pub fn blocking(&self, name: &str) -> Result<Vec<BlockingThread>, PatchError> {
        let patch = self.patches()?.into_iter().find(|patch| is_same_name(&patch.name, name));
        let patch = patch.ok_or_else(|| PatchError::Unknown(name.to_owned()))?;
        let Some((_, blocked)) = patch.transition else { return Ok(Vec::new()) };
        let tids = blocked.iter().map(|blocked| blocked.tid);
        let standing = match patch.how {
            Transition::Anywhere => modload_livepatch::standing(&tids.collect::<Vec<_>>())?,
            Transition::CheckpointsOnly => tids.map(Standing::unknown).collect(),
        };
        let describe = |at: Addr, is_return: bool| {
            let module = self.inner.loader.module_at(if is_return { at.offset(-1) } else { at })?;
            if is_return { module.describe_return(at) } else { module.describe(at) }
        };
        let thread = |one: Standing| {
            let why = blocked.iter().find(|blocked| blocked.tid == one.tid)?.why;
            let named = |pc| {
                let at = Addr::new(pc);
                describe(at, true).or_else(|| describe(at, false)).unwrap_or_else(|| at.to_string())
            };
            let inside = if let Why::Inside(pc) = why { Some(named(pc)) } else { None };
            let why = match (&inside, why, patch.how) {
                (Some(frame), _, Transition::Anywhere) => format!("is in {frame}"),
                (Some(frame), _, Transition::CheckpointsOnly) => format!("was in {frame} at its last checkpoint"),
                (None, Why::NoCheckpoint, _) => "has not come to a checkpoint".to_owned(),
                (None, Why::Unwalked, _) => {
                    "came to a checkpoint with a stack that cannot be walked to its end".to_owned()
                }
                (None, ..) => "has a stack that cannot be walked to its end".to_owned(),
            };
            let state = modload_threads::status(one.tid).ok().flatten().map(|status| status.state);
            let name = modload_threads::name(one.tid).ok().flatten().map(|name| name.to_string());
            Some(BlockingThread {
                thread: one.tid.get(),
                name: name.unwrap_or_default(),
                state: state.map(|state| state.to_string()).unwrap_or_default(),
                inside,
                why,
                backtrace: Backtrace::of(&one.frames, one.ended, describe),
            })
        };
        Ok(standing.into_iter().filter_map(thread).collect())
    }

    /// A checkpoint: a place where the calling thread may migrate to a patch. With [`Transition::CheckpointsOnly`]
    /// threads migrate nowhere else. The thread walks its own stack and migrates if no function that changes is on the
    /// stack. So this may be called from anywhere, also from a patched function. Without a transition a checkpoint
    /// costs a load and a branch. Returns whether the thread has migrated or has no need to.
    ///
    /// By choosing the place of checkpoints, the embedder also guarantees consistency: between two checkpoints (for
    /// example during one request) the thread runs only old functions or only new ones.
    #[inline]
    pub fn checkpoint(&self) -> bool {
        modload_livepatch::checkpoint()
    }

    /// Returns an address in a module of this host as Linux's `%pS` shows it: `func+0x12/0x40 [module]`. Returns `None`
    /// for any other address.
    #[must_use]
    pub fn describe(&self, at: Addr) -> Option<String> {
        self.inner.loader.module_at(at)?.describe(at)
    }

    /// Returns the stack of this thread, innermost frame first, beginning with the caller of this function. Frames are
    /// found by call frame information only. Where there is none, the backtrace ends with an error.
    #[must_use]
    #[inline(never)]
    pub fn backtrace(&self) -> Backtrace {
        Backtrace::of_this_thread(|at, is_return| {
            let module = self.inner.loader.module_at(if is_return { at.offset(-1) } else { at })?;
            if is_return { module.describe_return(at) } else { module.describe(at) }
        })
    }

    /// Returns the quarantined modules: those that were unloaded while a thread was in their text, for example a thread
    /// that `exit` did not end. Their memory and their unwind rows stay until no thread is in their text.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Arc<ModuleInfo>> {
        self.inner.loader.quarantined()
    }

    /// Frees the quarantined memory of this process that no thread is in any more, as each load and unload does.
    /// Returns the names of the freed modules.
    pub fn sweep(&self) -> Vec<String> {
        modload_ftrace::sweep();
        self.inner.loader.sweep()
    }

    /// Returns how the memory that all hosts of the process share is used, by stripe.
    #[must_use]
    pub fn memory(&self) -> [StripeUsage; 4] {
        self.inner.loader.memory()
    }

    /// Returns a handle that does not keep the host alive: for subscribers that load and unload modules.
    #[must_use]
    pub fn downgrade(&self) -> WeakHost {
        WeakHost { inner: Arc::downgrade(&self.inner) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Done while the host can still be found, so that the exit of a module can undo what its init did.
        let last = self.inner.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        // A subscriber that is called here may make another `Host` value, and drop it meanwhile.
        if last && !self.inner.left.swap(true, Ordering::AcqRel) {
            // Patches must go first, because they hold their modules.
            self.inner.livepatch.leave();
            self.inner.loader.abandon();
            self.inner.ftrace.leave();
        }
    }
}

/// A handle that does not keep its host alive.
#[derive(Clone, Debug)]
pub struct WeakHost {
    inner: Weak<HostState>,
}

impl WeakHost {
    /// Returns the host, if it still exists.
    #[must_use]
    pub fn upgrade(&self) -> Option<Host> {
        self.inner.upgrade().map(Host::handle)
    }
}
