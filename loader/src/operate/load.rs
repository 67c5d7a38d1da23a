//! The one function.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use modload_edit::{Addr, Ledger, wide};
use modload_notifier::Order;
use modload_relocs::RelocCounts;
use modload_text::{Arena, ArenaError, StripeUsage};

use crate::elf::file::File;
use crate::elf::link::{self, MergedObject};
use crate::elf::modinfo::{self, Modinfo};
use crate::modules::chains::{self, Membership};
use crate::modules::entry::Image;
use crate::modules::module::{Module, Reference};
use crate::modules::recorder::{Listening, Recorder, Recording};
use crate::modules::registry::{Registry, Reservation};
use crate::modules::subscriber::Subscriber;
use crate::modules::timeline::{Event, EventKind};
use crate::modules::{fork, quarantine};
use crate::operate::admit;
use crate::operate::announced::{AnnouncedModule, Constructed, Dropped, IndirectResolved};
use crate::operate::error::{Error, LoadError, UnloadError};
use crate::operate::form::{NewModule, Unformed};
use crate::operate::judge::Judge;
use crate::operate::leave;
use crate::operate::onlooker::{Made, Onlooker};
use crate::operate::resolve;
use crate::operate::scene::{Absent, Scene};
use crate::operate::unload::{self, Unless, Which};
use crate::prepare::deferred::{Slices, Waiting};
use crate::prepare::error::PrepareError;
use crate::prepare::layout::{self, ModuleLayout};
use crate::prepare::memory::{self, Copied, Staging};
use crate::prepare::params::ParamsSet;
use crate::prepare::policy::{ForcedUnload, Policy, Proof};
use crate::prepare::relocate;
use crate::prepare::resolved::Resolved;
use crate::prepare::specialise::{self, Specialised};
use crate::prepare::vague::SharedDefinitions;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::externals::Externals;
use crate::vocabulary::module_id::ModuleId;
use crate::vocabulary::sentence::sentence;
use crate::vocabulary::stage::Stage;
use crate::vocabulary::state::State;

/// Loads and unloads modules. Dropping a loader unloads all modules in reverse order. Modules that are still held are
/// leaked, with an error in the log.
pub struct Loader {
    pub(crate) registry: &'static Registry,
    arena: &'static Arena,
    externals: Arc<dyn Externals>,
    policy: Policy,
    onlookers: Vec<Arc<dyn Onlooker>>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("modules", &self.modules()).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Makes stages fail, for tests. The product's [`NoFaults`] compiles to nothing.
pub trait Faults {
    /// Called before each stage.
    ///
    /// # Errors
    /// [`Injected`] makes the stage fail.
    fn before(&self, stage: Stage) -> Result<(), Injected> {
        let _ = stage;
        Ok(())
    }
}

/// A stage that a test makes fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Injected;

/// Nothing fails that need not.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NoFaults;

impl Faults for NoFaults {}

/// A load in progress: the current stage, for errors and for the timeline.
struct LoadRun<'a, F> {
    registry: &'static Registry,
    module: Arc<str>,
    faults: &'a F,
}

impl<F: Faults> LoadRun<'_, F> {
    fn recorder(&self) -> Recorder<'_> {
        Recorder { registry: self.registry, module: &self.module }
    }

    /// Runs one stage.
    #[inline]
    fn stage<T: Counted, E: Into<Error>>(
        &self,
        stage: Stage,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, LoadError> {
        if let Err(Injected) = self.faults.before(stage) {
            return Err(self.failed(stage, Error::Injected));
        }
        match run() {
            Ok(value) => {
                if !stage.tells_itself() && value.is_news() {
                    self.recorder().record(|| EventKind::Stage { stage, detail: value.counts() });
                }
                Ok(value)
            }
            Err(error) => Err(self.failed(stage, error.into())),
        }
    }

    #[cold]
    fn failed(&self, stage: Stage, error: Error) -> LoadError {
        self.recorder().record(|| EventKind::Failed { stage, error: sentence(&error) });
        LoadError { module: self.module.to_string(), stage, error: Box::new(error) }
    }

    fn state(&self, state: State) {
        self.recorder().record(|| EventKind::State { state });
        tracing::debug!(module = %self.module, %state);
    }
}

/// Counts that describe the result of a stage, independent of addresses.
trait Counted {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Whether the stage has done anything that belongs in a timeline.
    fn is_news(&self) -> bool {
        true
    }
}

impl Counted for () {}
impl Counted for Modinfo<'_> {}
impl Counted for Judge<'_> {}
impl Counted for Reservation {}
impl Counted for Staging {}
impl<M> Counted for AnnouncedModule<'_, M> {}
impl Counted for (Reference, Dropped) {}

impl Counted for MergedObject<'_> {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("objects", wide(self.objects.len()))]
    }

    fn is_news(&self) -> bool {
        !self.objects.is_empty()
    }
}

impl Counted for File<'_> {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("sections", wide(self.sections.len())), ("symbols", self.symbol_count().into())]
    }
}

impl Counted for ModuleLayout {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let kept = self.sections.iter().flatten().count();
        vec![("sections", wide(kept)), ("got", self.slots.got_size()), ("plt", self.slots.plt_size())]
    }
}

impl Counted for Copied {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("bytes", self.bytes)]
    }
}

impl Counted for Resolved {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("external", self.external)]
    }
}

impl Counted for RelocCounts {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        self.iter().map(|(name, count)| (name, count.into())).collect()
    }
}

impl Counted for (Specialised, Option<Box<Slices>>) {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        self.0.followed.clone()
    }

    fn is_news(&self) -> bool {
        !self.0.followed.is_empty()
    }
}

impl Counted for NewModule {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("params", wide(self.module.params().len()))]
    }
}

impl Counted for IndirectResolved {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("resolved", wide(self.0))]
    }
}

impl Counted for Constructed {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("called", wide(self.0))]
    }
}

impl Counted for ParamsSet {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        vec![("set", self.0)]
    }
}

/// Records that nothing of the module is left. Dropped last; records nothing if the memory is in quarantine.
struct FreedGuard<'a, F: Faults>(Option<(&'a LoadRun<'a, F>, ModuleId)>);

impl<F: Faults> Drop for FreedGuard<'_, F> {
    fn drop(&mut self) {
        if let Some((run, id)) = self.0
            && !quarantine::holds(run.registry, id)
        {
            run.recorder().record(|| EventKind::Freed);
        }
    }
}

impl Loader {
    /// Creates a loader without modules. All loaders share the process's arena.
    ///
    /// # Errors
    /// [`ArenaError`] names the rule of the system that prevents this.
    pub fn new(externals: Arc<dyn Externals>, policy: Policy) -> Result<Loader, ArenaError> {
        // Before any other fork handler is registered.
        modload_tls::install().map_err(|source| ArenaError::Handler { what: "fork handlers", source })?;
        let arena = Arena::get()?;
        let sees = modload_threads::can_see().map_err(|error| Box::new(error).into());
        let walks = || modload_threads::frames::know_process().map_err(|missing| Box::new(missing).into());
        match sees.and_then(|()| walks()) {
            Err(missing) if policy.proof == Proof::Stacks => return Err(ArenaError::Inspect(missing)),
            // Modules run without stack walks. Walks through the host's own frames fail.
            Err(missing) => tracing::warn!(%missing, "stacks cannot be walked"),
            Ok(()) => {}
        }
        fork::install();
        Ok(Loader { registry: Registry::acquire(), arena, externals, policy, onlookers: Vec::new() })
    }

    /// Shows all modules to be loaded to a debugger or profiler, too.
    #[must_use]
    pub fn with_onlooker(mut self, onlooker: Arc<dyn Onlooker>) -> Loader {
        self.onlookers.push(onlooker);
        self
    }

    /// Loads a module: UNFORMED, COMING, LIVE. After an error nothing of the module is left, except memory in
    /// [quarantine](Loader::quarantined) if threads of the module are still inside.
    ///
    /// # Errors
    /// [`LoadError`]: the stage and the reason.
    pub fn load_module(&self, image: &Image<'_>) -> Result<Reference, LoadError> {
        self.load_module_with(image, &NoFaults)
    }

    /// [`Loader::load_module`], with stages that are made to fail.
    ///
    /// # Errors
    /// [`LoadError`]: the stage and the reason.
    pub fn load_module_with<F: Faults>(&self, image: &Image<'_>, faults: &F) -> Result<Reference, LoadError> {
        quarantine::sweep_if_any();
        let Loader { registry, arena, externals, policy, onlookers } = self;
        let mut run = LoadRun { registry, module: escaped(image.stem.as_bytes()).into(), faults };

        // Bytes only.
        let linked = run.stage(Stage::Link, || link::link(&image.inputs, &image.wanted, policy.size_limit))?;
        let file = run.stage(Stage::Validate, || File::validate(&linked.bytes))?;
        let info = run.stage(Stage::Modinfo, || modinfo::read(&file, &image.stem))?;
        run.module = info.name.as_str().into();
        let judge = run.stage(Stage::Admit, || admit::admit(&file, &info, policy, run.recorder()))?;
        let operations = policy.rewriting.host_operations.as_ref();
        let shared = SharedDefinitions::of(&file, policy.exports);
        let layout = run.stage(Stage::Layout, || layout::plan(&file, policy.size_limit, operations, shared))?;

        // UNFORMED: the name is reserved, and nothing else is visible to others.
        let mut gone = FreedGuard(None);
        let reservation = run.stage(Stage::Reserve, || registry.reserve(&run.module))?;
        let id = reservation.id;
        gone.0 = Some((&run, id));
        run.state(State::Unformed);
        let mut memory = run.stage(Stage::Allocate, || memory::allocate(arena, &layout))?;
        run.stage(Stage::Copy, || Ok::<_, Error>(memory::copy(&file, &layout, operations, &mut memory)))?;
        let libraries = resolve::open_libraries(&info, &**externals);
        let libraries = libraries.map_err(|error| run.failed(Stage::Resolve, error))?;
        let scene = Scene {
            registry,
            user: id,
            name: &run.module,
            externals: &**externals,
            judge: &judge,
            libraries: &libraries,
            absent: Absent::Refused,
            shared,
        };
        let mut resolved = run.stage(Stage::Resolve, || resolve::resolve(&file, &layout, &memory, scene))?;
        memory.keep_blocks(std::mem::take(&mut resolved.library_blocks));
        let near = memory.copy_near(arena, &mut resolved).map_err(PrepareError::from);
        near.map_err(|error| run.failed(Stage::Resolve, error.into()))?;
        memory.keep_libraries(libraries);
        let low = arena.is_low();
        run.stage(Stage::Relocate, || relocate::relocate(&file, &layout, &resolved, &mut memory, low))?;
        let (Specialised { calls, .. }, slices) = run.stage(Stage::Specialise, || {
            let waiting = Waiting::of(&file, &layout, &memory, policy.rewriting.profile)?;
            let mut code = Ledger::new(&mut memory);
            let specialised = specialise::specialise(&file, &layout, &mut code, &policy.rewriting, &waiting)?;
            let slices = Slices::of(&waiting, &file, &layout, &resolved, &code, &policy.rewriting)?;
            Ok::<_, PrepareError>((specialised, slices))
        })?;
        let (file, info, layout, name) = (&file, &info, &layout, run.module.clone());
        let judge = &judge;
        let externals = &**externals;
        let elsewhere = &resolved.elsewhere;
        let unformed =
            Unformed { file, info, layout, id, name, registry, externals, policy, judge, slices, shared, elsewhere };
        let NewModule { module, memory } = run.stage(Stage::Form, || unformed.form(memory))?;

        // COMING: symbols are visible, relocations done, text still staged.
        run.state(State::Coming);
        let announced = run.stage(Stage::Coming, || AnnouncedModule::tell(run.recorder(), module, memory, &calls))?;
        let mut announced = run.stage(Stage::Publish, || announced.publish())?;
        announced.show(onlookers, Made { object: &linked.bytes, file, layout, resolved: &resolved });
        run.stage(Stage::Indirect, || announced.resolve_indirect())?;
        run.stage(Stage::Params, || announced.set_params(&image.params))?;
        run.stage(Stage::Constructors, || announced.construct())?;
        run.stage(Stage::Init, || announced.init())?;

        // LIVE: once ro_after_init data is protected nothing can fail any more.
        let (module, init) = run.stage(Stage::Protect, || announced.protect())?;
        gone.0 = None;
        reservation.live();
        run.state(State::Live);
        tracing::info!(module = %run.module, "LIVE");
        chains::live(run.recorder(), &module);
        init.forget(&module);
        run.recorder().record(|| EventKind::Stage { stage: Stage::DropInit, detail: Vec::new() });
        Ok(module)
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn arena(&self) -> &'static Arena {
        self.arena
    }

    pub(crate) fn externals(&self) -> &dyn Externals {
        &*self.externals
    }

    /// Has a subscriber join both chains.
    #[must_use = "dropping the membership leaves the chains"]
    pub fn subscribe(&self, name: &str, order: Order, subscriber: Arc<dyn Subscriber>) -> Membership {
        Membership::join(self.registry, name, order, subscriber, None)
    }

    /// [`Loader::subscribe`] for a subscriber whose code belongs to a module. If the subscriber is still a member when
    /// that module is unloaded, the membership ends with a warning.
    #[must_use = "dropping the membership leaves the chains"]
    pub fn subscribe_for(
        &self,
        owner: &Module,
        name: &str,
        order: Order,
        subscriber: Arc<dyn Subscriber>,
    ) -> Membership {
        Membership::join(self.registry, name, order, subscriber, Some(owner))
    }

    /// Returns the module whose memory contains an address, including COMING and GOING ones.
    #[must_use]
    pub fn module_at(&self, at: Addr) -> Option<Arc<Module>> {
        self.registry.lock().module_at(at)
    }

    /// Records the events of all modules from now on.
    #[must_use]
    pub fn record(&self) -> Recording {
        Recording::start(self.registry)
    }

    /// Calls a function for each event that this thread causes. No lock is held during the call, and this thread
    /// continues when the function returns.
    #[must_use = "dropping it ends the listening"]
    pub fn listen(&self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Listening {
        Listening::start(self.registry, Arc::new(listener))
    }

    /// Calls the destructors that modules have registered for the end of this thread, of thread-local variables and of
    /// keys, and begins this thread's copies of their variables anew. Modules on this thread's stack, and modules that
    /// are not LIVE, are left out. Returns whether no module has destructors of this thread any more.
    pub fn leave_thread(&self) -> bool {
        leave::leave(self.registry, |_| true)
    }

    /// [`Loader::leave_thread`], of modules whose unload waits for destructors. Otherwise this takes a load and a branch.
    #[inline]
    pub fn leave_awaited(&self) {
        if leave::is_awaited() {
            leave::leave_awaited(self.registry);
        }
    }

    /// A reference to the LIVE module of this name.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<Reference> {
        let book = self.registry.lock();
        let entry = book.by_name(name).filter(|entry| entry.state == State::Live)?;
        entry.module.as_ref()?.get()
    }

    /// Returns all modules that are COMING, LIVE or GOING with their states, in order of loading, without references.
    /// Such modules may be unloaded at any time.
    #[must_use]
    pub fn look(&self) -> Vec<(Arc<Module>, State)> {
        let book = self.registry.lock();
        book.modules.iter().filter_map(|entry| Some((entry.module.clone()?, entry.state))).collect()
    }

    /// Returns the taint letters of the host, as in Linux: those of all modules that have been LIVE, and R after a
    /// forced unload.
    #[must_use]
    pub fn taint(&self) -> String {
        self.registry.lock().taint.iter().collect()
    }

    /// Returns names and states of all modules, in order of loading.
    #[must_use]
    pub fn modules(&self) -> Vec<(String, State)> {
        self.registry.lock().modules.iter().map(|entry| (entry.name.to_string(), entry.state)).collect()
    }

    /// Unloads all modules, the last one first. Returns a reason for each module that stays: a module that is held or
    /// not LIVE.
    pub fn unload_all(&self) -> Vec<UnloadError> {
        let all: Vec<_> =
            self.registry.lock().modules.iter().rev().map(|entry| (entry.id, entry.name.clone())).collect();
        let unload = |(id, name): (_, Arc<str>)| {
            unload::unload_module(self.registry, Which::This(id, &name), Unless::Used).err()
        };
        all.into_iter().filter_map(unload).collect()
    }

    /// Unloads all modules. A module that is held stays, with an error in the log.
    pub fn abandon(&self) {
        for error in self.unload_all() {
            tracing::error!(%error, "left in memory when its host was dropped");
        }
    }

    /// Returns the unloaded modules whose text still has a thread inside: the memory stays until no thread is inside.
    /// Each load, each unload and [`Loader::sweep`] free such memory if possible.
    #[must_use]
    pub fn quarantined(&self) -> Vec<Arc<Module>> {
        quarantine::of(self.registry)
    }

    /// Frees all quarantined memory of this process that no thread is in any more, and returns the names of those
    /// modules.
    pub fn sweep(&self) -> Vec<String> {
        quarantine::sweep()
    }

    /// How the arena is used.
    #[must_use]
    pub fn memory(&self) -> [StripeUsage; 4] {
        self.arena.usage()
    }

    /// Unloads a module: calls `exit` and destructors, calls the going chain, and frees the memory.
    ///
    /// # Errors
    /// [`UnloadError`]: the module is in use, not LIVE, or not loaded. The module is unchanged.
    pub fn unload_module(&self, name: &str) -> Result<(), UnloadError> {
        unload::unload_module(self.registry, Which::Named(name), Unless::Used)
    }

    /// [`Loader::unload_module`], but waits at most this long until the module is unused. The module still gives
    /// references in the meantime.
    ///
    /// # Errors
    /// [`UnloadError`]: the module is still in use, not LIVE, or not loaded. The module is unchanged.
    pub fn unload_module_within(&self, name: &str, at_most: Duration) -> Result<(), UnloadError> {
        unload::unload_module(self.registry, Which::Named(name), Unless::UsedFor(at_most))
    }

    /// [`Loader::unload_module`] of a module that references hold, but no other modules. `exit` and the going chain run
    /// as always, and the memory stays until the last reference is dropped. Taints the host with R.
    ///
    /// # Errors
    /// [`UnloadError`]: the policy forbids this, other modules use the module, or the module is not LIVE or not loaded.
    pub fn unload_module_by_force(&self, name: &str) -> Result<(), UnloadError> {
        match self.policy.forced_unload {
            ForcedUnload::Refused => Err(UnloadError::ForceRefused(name.escape_debug().to_string())),
            ForcedUnload::Allowed => unload::unload_module(self.registry, Which::Named(name), Unless::UsedByModules),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.abandon();
        quarantine::sweep_if_any();
        quarantine::abandon(self.registry);
        self.registry.release();
    }
}
