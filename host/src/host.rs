//! The host: the only place where the parts are put together.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use modload_edit::Addr;
use modload_loader::{
    Event, Externals, Image, Input, Listening, LoadError, Loader, Membership, Module as ModuleInfo, Onlooker, Order,
    Policy, Recording, State, Subscriber, UnloadError,
};
use modload_text::{ArenaError, StripeUsage};
use modload_threads::boundary;

use crate::backtrace::Backtrace;
use crate::builder::HostBuilder;
use crate::built_in::{self, BuiltInOptions};
use crate::c_api::{self, Inner};
use crate::foreign::Module;

/// Holds modules. Dropping it unloads them in reverse order; what is still held by a [`Module`] is left in memory, and
/// the log has an error for it.
#[derive(Debug)]
pub struct Host {
    pub(crate) inner: Arc<Inner>,
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
        options: &BuiltInOptions,
    ) -> Result<Host, ArenaError> {
        let loader = onlookers.into_iter().fold(Loader::new(externals, policy)?, Loader::with_onlooker);
        let inner = Arc::new(Inner::new(loader, options));
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
        built_in::sweep();
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
            self.inner.built_in.release_modules();
            self.inner.loader.abandon();
            self.inner.built_in.leave();
        }
    }
}

/// A handle to a host that does not keep it.
#[derive(Clone, Debug)]
pub struct WeakHost {
    pub(crate) inner: Weak<Inner>,
}

impl WeakHost {
    /// The host, if it is still there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Host> {
        self.inner.upgrade().map(Host::handle)
    }
}
