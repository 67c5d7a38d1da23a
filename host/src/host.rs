//! The host: the only place where the parts are put together.

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
use crate::c_api::{self, Inner};
use crate::foreign::Module;

/// A thread that stands in the way of a transition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockingThread {
    /// Its id, as gettid(2) gives it.
    pub thread: i32,
    /// Its name, escaped.
    pub name: String,
    /// What it does, in a word: `sleeping`, say.
    pub state: String,
    /// The frame that stood in the way when it was looked at last; `None` if no such frame is known.
    pub inside: Option<String>,
    /// Why it stands in the way, as it is said of it: `is in slow+0x1c/0x40 [target]`, `has not come to a checkpoint`.
    pub why: String,
    /// Its calls as they are now. Empty where threads go over at checkpoints alone: it is not held to be asked.
    pub backtrace: Backtrace,
}

/// Holds modules. Dropping it unloads them in reverse order; what is still held by a [`Module`] is left in memory, and
/// the log has an error for it.
#[derive(Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

impl Host {
    /// A host that exports nothing of its own.
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
        let inner = Arc::new(Inner::new(loader, transition));
        c_api::enter(&inner);
        Ok(Host::handle(inner))
    }

    fn handle(inner: Arc<Inner>) -> Host {
        inner.handles.fetch_add(1, Ordering::Relaxed);
        Host { inner }
    }

    /// Loads a module: it is LIVE when this returns, and as if it had never been there when it fails, but for memory in which threads
    /// are that it has started: that is [quarantined](Host::quarantined). A cancellation of this thread that comes while the module's
    /// code runs is an error of this load, and then ends the thread, if its own frames allow that ([`Module::call`]).
    ///
    /// # Errors
    /// [`LoadError`]: the module, the stage and the reason.
    pub fn load(&self, image: &Image<'_>) -> Result<Module, LoadError> {
        let loaded = self.inner.loader.load_module(image).map(Module::new);
        // After a cancellation in init, which has been taken back.
        boundary::end_if_cancelled();
        loaded
    }

    /// Checks whether a link unit could be loaded into this host. Runs every stage of a load that comes before the coming chain,
    /// and discards the result. No code of the module runs, and no subscriber is called.
    ///
    /// # Errors
    /// [`LoadError`]: the stage that a load would not get past, and why.
    pub fn check(&self, inputs: &[Input<'_>], stem: &str) -> Result<(), LoadError> {
        self.inner.loader.check(inputs, stem)
    }

    /// What a function of a link unit would become in this host, and why: every byte that relocations, alternatives and
    /// the other engines would change. Nothing is loaded, and nothing of it is run.
    ///
    /// # Errors
    /// [`LoadError`]: the stage that cannot be done and the reason.
    pub fn explain(&self, inputs: &[Input<'_>], stem: &str, function: &str) -> Result<Explanation, LoadError> {
        self.inner.loader.explain(inputs, stem, function)
    }

    /// Unloads the module of this name.
    ///
    /// # Errors
    /// [`UnloadError`]: it is in use (and by whom), not LIVE, or not there.
    pub fn unload(&self, name: &str) -> Result<(), UnloadError> {
        let unloaded = self.inner.loader.unload_module(name);
        boundary::end_if_cancelled();
        unloaded
    }

    /// [`Host::unload`], which waits until nobody uses the module, at most so long.
    ///
    /// # Errors
    /// [`UnloadError`]: it is still in use (and by whom), not LIVE, or not there.
    pub fn unload_within(&self, name: &str, at_most: Duration) -> Result<(), UnloadError> {
        self.inner.loader.unload_module_within(name, at_most)
    }

    /// [`Host::unload`] of a module that is held by [`Module`]s, if [`HostBuilder::allow_forced_unload`] was called. Its
    /// `exit` and the going chain run now, and its memory stays until the last of them is dropped: their symbols can
    /// still be called, but what `exit` has taken down is not there. Taints the host with R. Other modules that use it
    /// are never overridden.
    ///
    /// # Errors
    /// [`UnloadError`]: it is not allowed, other modules use it, it is not LIVE, or not there.
    pub fn unload_by_force(&self, name: &str) -> Result<(), UnloadError> {
        self.inner.loader.unload_module_by_force(name)
    }

    /// Unloads all modules, the last one first. Returns what stays, and why.
    #[must_use = "what is in use stays"]
    pub fn unload_all(&self) -> Vec<UnloadError> {
        self.inner.loader.unload_all()
    }

    /// The LIVE module of this name.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<Module> {
        self.inner.loader.module(name).map(Module::new)
    }

    /// Names and states of all modules, in order of their loading.
    #[must_use]
    pub fn modules(&self) -> Vec<(String, State)> {
        self.inner.loader.modules()
    }

    /// All modules that are COMING, LIVE or GOING and their states, in order of their loading. Looking at them does not
    /// keep them: that takes a [`Module`].
    #[must_use]
    pub fn look(&self) -> Vec<(Arc<ModuleInfo>, State)> {
        self.inner.loader.look()
    }

    /// What it is tainted with, in Linux's letters: those of all modules that were ever LIVE in it, and R if one that
    /// was held has been unloaded by force.
    #[must_use]
    pub fn taint(&self) -> String {
        self.inner.loader.taint()
    }

    /// Has a function told, as they happen, the events of what this thread does with modules. No lock is held when it
    /// is called, and the thread goes on when it returns.
    #[must_use = "dropping it ends the listening"]
    pub fn listen(&self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Listening {
        self.inner.loader.listen(listener)
    }

    /// Has a subscriber join the coming and the going chain.
    #[must_use = "dropping the membership leaves the chains"]
    pub fn subscribe(&self, name: &str, order: Order, subscriber: impl Subscriber + 'static) -> Membership {
        self.inner.loader.subscribe(name, order, Arc::new(subscriber))
    }

    /// Records what happens to all modules of this host from now on.
    #[must_use]
    pub fn record(&self) -> Recording {
        self.inner.loader.record()
    }

    /// Has a tracer hear of all calls of the functions that a filter means, in all threads: of modules that are there, and of
    /// those that are loaded while it is in force. `docs/tracing.md` says how modules are compiled for it.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.ftrace.trace(filter, tracer)
    }

    /// [`Host::trace`], with all general registers.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace_with_registers(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.ftrace.trace_with_registers(filter, tracer)
    }

    /// Has calls of functions go on elsewhere: [`modload_ftrace::Redirecting`] promises that they may.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::Redirected`]: by somebody else already.
    pub fn redirect(&self, filter: Filter, redirecting: Redirecting) -> Result<Tracing, TraceError> {
        self.inner.ftrace.redirect(filter, redirecting)
    }

    /// Records calls, or entries and returns, of functions of its modules in all threads, until what this returns is dropped.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::UnderWay`]: there is one recording at a time in a process.
    pub fn trace_functions(&self, options: &TraceOptions) -> Result<FunctionTrace, TraceError> {
        let host = self.downgrade();
        let name = move |at: Addr| {
            // No handle: the last of them may not be dropped by who reads.
            let inner = host.inner.upgrade()?;
            inner.loader.module_at(at.offset(-1))?.describe_return(at)
        };
        self.inner.ftrace.record(options, name)
    }

    /// Makes functions of the host's own traceable, as those of a module `vmlinux`: once for each host.
    ///
    /// # Errors
    /// [`TraceError`]. A function that cannot be traced is no error: [`Host::traceable`] lists it with the reason.
    pub fn register_host_functions(&self, functions: Vec<HostFunction>) -> Result<(), TraceError> {
        self.inner.ftrace.register_host_functions(functions)
    }

    /// The functions that can be traced, and those that cannot and why, of all modules that are compiled for it.
    #[must_use]
    pub fn traceable(&self) -> Vec<Traceable> {
        self.inner.ftrace.traceable()
    }

    /// Enables a patch: Linux's `klp_enable_patch`. Functions of modules that are there are redirected now, those of others when they
    /// are loaded. When this returns, threads may still be on their way: [`Host::patches`]. `keep` stays loaded as long as the
    /// patch is in force: the module whose functions take the place of others.
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

    /// Disables a patch, or turns it round while it is being enabled.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn disable_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.livepatch.disable(name)
    }

    /// Disables all patches, the newest first, each when the one before is gone, at most so long. Returns those that are still there:
    /// somebody does not leave their functions, or does not come to a checkpoint. While it waits, the calling thread comes to some.
    ///
    /// # Errors
    /// [`PatchError`]: one cannot be disabled.
    pub fn disable_patches(&self, at_most: Duration) -> Result<Vec<PatchStatus>, PatchError> {
        const LONGEST: Duration = Duration::from_millis(50);
        let (begun, mut pause) = (Instant::now(), Duration::from_micros(100));
        loop {
            let patches = self.patches()?;
            let Some(newest) = patches.last() else { return Ok(patches) };
            if newest.enabled {
                match self.disable_patch(&newest.name) {
                    // Gone by itself: nothing waits for that any more.
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

    /// Turns the transition of a patch round.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn reverse_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.livepatch.reverse(name)
    }

    /// Ends the transition of a patch, wherever threads are: those that are in old code finish it, and it stays for them.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn force_patch(&self, name: &str) -> Result<(), PatchError> {
        self.inner.livepatch.force(name)
    }

    /// The patches that are enabled or on their way, and who stands in their way.
    ///
    /// # Errors
    /// [`PatchError::Nested`].
    pub fn patches(&self) -> Result<Vec<PatchStatus>, PatchError> {
        self.inner.livepatch.status()
    }

    /// The threads that stand in the way of a patch's transition, as they are now. They are held for a moment to be asked where they
    /// are, but for [`Transition::CheckpointsOnly`].
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

    /// A place where the calling thread can go over to what a patch brings: with [`Transition::CheckpointsOnly`] the only one. The
    /// thread walks its own stack here, so that this may be called from anywhere, from a patched function, too; it goes over if none
    /// of the functions that change is on the stack. When no transition is under way this costs a load and a branch. Says whether
    /// the thread is over, or need not be.
    ///
    /// What the embedder says by the place that he chooses is more than that: what the thread does between two checkpoints (one
    /// request, say) is done by the old functions or by the new ones.
    #[inline]
    pub fn checkpoint(&self) -> bool {
        modload_livepatch::checkpoint()
    }

    /// An address in one of its modules as Linux's `%pS` shows it: `func+0x12/0x40 [module]`. `None` for the rest of the
    /// process.
    #[must_use]
    pub fn describe(&self, at: Addr) -> Option<String> {
        self.inner.loader.module_at(at)?.describe(at)
    }

    /// The calls that this thread is in, innermost first, from the caller of this function on. Frames are found by call
    /// frame information alone; where there is none, the backtrace ends and says so.
    #[must_use]
    #[inline(never)]
    pub fn backtrace(&self) -> Backtrace {
        Backtrace::of_this_thread(|at, is_return| {
            let module = self.inner.loader.module_at(if is_return { at.offset(-1) } else { at })?;
            if is_return { module.describe_return(at) } else { module.describe(at) }
        })
    }

    /// The modules that have gone while somebody was in their text: a thread that `exit` did not end, say. Their memory
    /// stays, with the rows to unwind it, until nobody is.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Arc<ModuleInfo>> {
        self.inner.loader.quarantined()
    }

    /// Frees what nobody is in any more of all that is quarantined in this process, as each load and each unload does;
    /// returns the names of the modules.
    pub fn sweep(&self) -> Vec<String> {
        modload_ftrace::sweep();
        self.inner.loader.sweep()
    }

    /// How the memory that all hosts of the process share is used, by stripe.
    #[must_use]
    pub fn memory(&self) -> [StripeUsage; 4] {
        self.inner.loader.memory()
    }

    /// A handle that does not keep the host: for subscribers that load and unload.
    #[must_use]
    pub fn downgrade(&self) -> WeakHost {
        WeakHost { inner: Arc::downgrade(&self.inner) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // While the host can still be found, so that a module's exit can take back what its init did.
        let last = self.inner.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        // A subscriber that hears of it may have made another handle, and drops it meanwhile.
        if last && !self.inner.left.swap(true, Ordering::AcqRel) {
            // Patches hold their modules.
            self.inner.livepatch.leave();
            self.inner.loader.abandon();
            self.inner.ftrace.leave();
        }
    }
}

/// A handle to a host that does not keep it.
#[derive(Clone, Debug)]
pub struct WeakHost {
    inner: Weak<Inner>,
}

impl WeakHost {
    /// The host, if it is still there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Host> {
        self.inner.upgrade().map(Host::handle)
    }
}
