//! The host, which combines all parts.

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
use crate::c_api::{self, HostState};
use crate::foreign::Module;

/// A host holds modules. Dropping a host unloads its modules in reverse order, and takes as long as their `exit` functions take. A module
/// that is still held by a [`Module`] stays in memory, and the log has an error for it; [`Host::unload_all`] returns such errors.
///
/// ```
/// use modload::{Host, Image, State};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // `object` is the compiled form of: int missing(void); int call(void) { return missing(); }
/// # let object = modload_fixtures::c_object("int missing(void); int call(void) { return missing(); }")?;
/// let host = Host::builder().build()?;
/// // SAFETY: the object is the code above.
/// let image = unsafe { Image::trusted(object) }.named("caller");
///
/// // A load that fails leaves nothing behind.
/// let refused = host.load(&image).unwrap_err();
/// assert!(format!("{refused:?}").contains("missing"));
/// assert!(host.modules().is_empty());
///
/// extern "C" fn missing() -> i32 { 42 }
/// let address = missing as extern "C" fn() -> i32 as *const ();
/// let host = Host::builder().export("missing", address).build()?;
/// let caller = host.load(&image)?;
/// assert_eq!(host.modules(), [("caller".to_owned(), State::Live)]);
/// // SAFETY: `call` takes no arguments.
/// assert_eq!(unsafe { caller.call("call", &[])? }, 42);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Host {
    pub(crate) inner: Arc<HostState>,
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
        options: &BuiltInOptions,
    ) -> Result<Host, ArenaError> {
        let loader = onlookers.into_iter().fold(Loader::new(externals, policy)?, Loader::with_onlooker);
        let inner = Arc::new(HostState::new(loader, options));
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
    /// ```
    /// use std::thread;
    /// use std::time::Duration;
    ///
    /// use modload::{Host, Image};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
    /// # let host = Host::builder().build()?;
    /// # // SAFETY: the object is one function that adds.
    /// # let image = unsafe { Image::trusted(object) }.named("adder");
    /// let adder = host.load(&image)?;
    /// thread::scope(|scope| {
    ///     // Another thread uses the module for a moment.
    ///     scope.spawn(move || drop(adder));
    ///     host.unload_within("adder", Duration::from_secs(10))
    /// })?;
    /// assert!(host.modules().is_empty());
    /// # Ok(())
    /// # }
    /// ```
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

    /// Calls the destructors that modules have registered for the end of this thread: those of thread-local variables
    /// (`__cxa_thread_atexit_impl`) and of keys (`pthread_key_create`). This thread's copies of the modules' thread-local
    /// variables begin anew at the next access.
    ///
    /// Such destructors keep their module from being unloaded until the thread ends. A thread that has called modules,
    /// lives on, and will not call them soon can release them here. Modules with a function on this thread's stack are
    /// left out. Returns whether no module has a destructor of this thread any more.
    pub fn leave_thread(&self) -> bool {
        self.inner.loader.leave_thread()
    }

    /// A checkpoint: a place where the calling thread lets others change what it runs. The thread must be able to do
    /// without the modules' functions here, except for those that are on its own stack.
    ///
    /// - While an unload [waits](Host::unload_within) for destructors of this thread, they are called, as by
    ///   [`Host::leave_thread`].
    /// - With the feature `livepatch`: the thread may migrate to a patch. With `Transition::CheckpointsOnly` threads
    ///   migrate nowhere else. The thread walks its own stack and migrates if no function that changes is on the stack.
    ///   So this may be called from anywhere, also from a patched function.
    ///
    /// With nothing to do, a checkpoint costs two loads and two branches. Returns whether the thread has migrated or has
    /// no need to.
    ///
    /// By choosing the place of checkpoints, the embedder also guarantees consistency of patches: between two checkpoints
    /// (for example during one request) the thread runs only old functions or only new ones.
    #[inline]
    pub fn checkpoint(&self) -> bool {
        self.inner.loader.leave_awaited();
        #[cfg(feature = "livepatch")]
        let migrated = modload_livepatch::checkpoint();
        #[cfg(not(feature = "livepatch"))]
        let migrated = true;
        migrated
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

    /// Calls a function with each event that this thread causes, as it happens. The function is called
    /// without any lock held, and the thread continues when it returns.
    ///
    /// ```
    /// use modload::{Host, Image};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
    /// # // SAFETY: the object is one function that adds.
    /// # let image = unsafe { Image::trusted(object) }.named("adder");
    /// let host = Host::builder().build()?;
    /// let (send, events) = std::sync::mpsc::channel();
    /// let listening = host.listen(move |event| drop(send.send(event.kind.to_string())));
    /// host.load(&image)?.unload()?;
    /// drop(listening);
    /// let events: Vec<String> = events.iter().collect();
    /// assert!(events.iter().any(|event| event.contains("LIVE")), "{events:?}");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "dropping it ends the listening"]
    pub fn listen(&self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Listening {
        self.inner.loader.listen(listener)
    }

    /// Adds a subscriber to the coming and the going chain.
    ///
    /// ```
    /// use modload::{Coming, Host, Image, Order, Refusal, Subscriber};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// /// Refuses modules without a licence.
    /// struct LicenceRule;
    ///
    /// impl Subscriber for LicenceRule {
    ///     fn coming(&self, module: &mut Coming<'_>) -> Result<(), Refusal> {
    ///         module.module().license().map(|_| ()).ok_or_else(|| "it has no licence".into())
    ///     }
    /// }
    ///
    /// # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
    /// # // SAFETY: the object is one function that adds.
    /// # let image = unsafe { Image::trusted(object) }.named("adder");
    /// let host = Host::builder().build()?;
    /// let membership = host.subscribe("licences", Order::mirrored(0), LicenceRule);
    /// let refused = host.load(&image).unwrap_err();
    /// assert!(format!("{refused:?}").contains("it has no licence"));
    ///
    /// // Without the subscriber the host accepts the module.
    /// drop(membership);
    /// host.load(&image)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "dropping the membership leaves the chains"]
    pub fn subscribe(&self, name: &str, order: Order, subscriber: impl Subscriber + 'static) -> Membership {
        self.inner.loader.subscribe(name, order, Arc::new(subscriber))
    }

    /// Records the events of all modules of this host from now on.
    #[must_use]
    pub fn record(&self) -> Recording {
        self.inner.loader.record()
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
        built_in::sweep();
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
            self.inner.built_in.release_modules();
            self.inner.loader.abandon();
            self.inner.built_in.leave();
        }
    }
}

/// A handle that does not keep its host alive.
#[derive(Clone, Debug)]
pub struct WeakHost {
    pub(crate) inner: Weak<HostState>,
}

impl WeakHost {
    /// Returns the host, if it still exists.
    #[must_use]
    pub fn upgrade(&self) -> Option<Host> {
        self.inner.upgrade().map(Host::handle)
    }
}
