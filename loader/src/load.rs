//! The one function.

use std::fmt;
use std::sync::Arc;

use modload_edit::Addr;
use modload_notifier::Order;
use modload_text::{Arena, ArenaError, StripeUsage};

use crate::chains::{self, Accepted, Membership, Subscriber};
use crate::entry::{self, Image};
use crate::error::{Error, LoadError, Stage, UnloadError};
use crate::file::File;
use crate::form::{self, Exports};
use crate::memory::{self, Installed};
use crate::module::{self, Module, Parts, Reference, lock};
use crate::names;
use crate::params;
use crate::registry::{Registry, State};
use crate::relocate;
use crate::resolve::{self, Externals, Scene};
use crate::timeline::{EventKind, Recorder, Recording};
use crate::{admit, layout, modinfo, unload};

/// What a host allows and how it reports.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Which symbols of modules others may use.
    pub exports: Exports,
    /// The largest size of a module in memory, in bytes.
    pub size_limit: u64,
    /// The file descriptor that takes the report of a call into text that is not there.
    pub trap_descriptor: i32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { exports: Exports::Declared, size_limit: 1 << 30, trap_descriptor: 2 }
    }
}

/// Loads and unloads modules. Dropping it unloads them all in reverse order and leaks, with an error in the log, what
/// is still held.
pub struct Loader {
    pub(crate) registry: &'static Registry,
    arena: &'static Arena,
    externals: Arc<dyn Externals>,
    policy: Policy,
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

/// A load under way: where it is, for errors and for the timeline.
struct Run<'a, F> {
    registry: &'static Registry,
    module: Arc<str>,
    faults: &'a F,
}

impl<F: Faults> Run<'_, F> {
    fn recorder(&self) -> Recorder<'_> {
        Recorder { registry: self.registry, module: &self.module }
    }

    /// Runs one stage. What it gives back is described by `detail`, if anybody records.
    #[inline]
    fn stage<T>(
        &self,
        stage: Stage,
        run: impl FnOnce() -> Result<T, Error>,
        detail: impl FnOnce(&T) -> Vec<(&'static str, u64)>,
    ) -> Result<T, LoadError> {
        let done = match self.faults.before(stage) {
            Ok(()) => run(),
            Err(Injected) => Err(Error::Injected),
        };
        match done {
            Ok(value) => {
                if !stage.tells_itself() {
                    self.recorder().record(|| EventKind::Stage { stage, detail: detail(&value) });
                }
                Ok(value)
            }
            Err(error) => Err(self.failed(stage, error)),
        }
    }

    #[cold]
    fn failed(&self, stage: Stage, error: Error) -> LoadError {
        self.recorder().record(|| EventKind::Failed { stage, error: error.to_string() });
        LoadError { module: self.module.to_string(), stage, error: Box::new(error) }
    }

    fn state(&self, state: State) {
        self.recorder().record(|| EventKind::State { state });
        tracing::debug!(module = %self.module, %state);
    }
}

/// Undoes the coming chain when dropped: the module is GOING, and those who accepted it are told.
struct Announced<'a, F: Faults> {
    run: &'a Run<'a, F>,
    module: Arc<Module>,
    /// `None` once the module is LIVE.
    accepted: Option<Accepted>,
    constructed: Constructed,
}

/// Whether the constructors have run, so that the destructors must.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Constructed {
    No,
    Yes,
}

impl<F: Faults> Drop for Announced<'_, F> {
    fn drop(&mut self) {
        let Some(accepted) = self.accepted.take() else { return };
        chains::set_going(self.run.recorder(), &self.module);
        if self.constructed == Constructed::Yes {
            entry::destructors(&self.module.functions.destructors, self.module.functions.dso_handle);
        }
        chains::going(self.run.recorder(), &self.module, accepted);
        chains::evict(self.run.recorder(), &self.module);
    }
}

/// Says that nothing is left, when it is dropped after everything else.
struct Gone<'a, F: Faults>(Option<&'a Run<'a, F>>);

impl<F: Faults> Drop for Gone<'_, F> {
    fn drop(&mut self) {
        if let Some(run) = self.0 {
            run.recorder().record(|| EventKind::Freed);
        }
    }
}

impl Loader {
    /// A loader without modules, which shares the process's arena.
    ///
    /// # Errors
    /// [`ArenaError`] names the rule of the system that stands in the way.
    pub fn new(externals: Arc<dyn Externals>, policy: Policy) -> Result<Loader, ArenaError> {
        let arena = Arena::get()?;
        Ok(Loader { registry: Registry::acquire(), arena, externals, policy })
    }

    /// Loads a module: UNFORMED, COMING, LIVE. When it returns an error, nothing of the module is left.
    ///
    /// # Errors
    /// [`LoadError`] says in which stage and why.
    pub fn load_module(&self, image: &Image<'_>) -> Result<Reference, LoadError> {
        self.load_module_with(image, &NoFaults)
    }

    /// [`Loader::load_module`], with stages that fail.
    ///
    /// # Errors
    /// [`LoadError`] says in which stage and why.
    pub fn load_module_with<F: Faults>(&self, image: &Image<'_>, faults: &F) -> Result<Reference, LoadError> {
        let Loader { registry, arena, externals, policy } = self;
        let mut run = Run { registry, module: image.stem.as_str().into(), faults };

        // Bytes only.
        let file = run.stage(
            Stage::Validate,
            || File::validate(&image.bytes),
            |file| vec![("sections", modload_edit::wide(file.sections.len())), ("symbols", file.symbol_count().into())],
        )?;
        let info = run.stage(Stage::Modinfo, || modinfo::read(&file, &image.stem), |_| vec![])?;
        run.module = info.name.as_str().into();
        let run = run;
        run.stage(Stage::Admit, || admit::check(&file, &info), |()| vec![])?;
        let layout = run.stage(
            Stage::Layout,
            || layout::plan(&file, policy.size_limit),
            |layout| {
                let kept = layout.sections.iter().flatten().count();
                vec![
                    ("sections", modload_edit::wide(kept)),
                    ("got_slots", layout.slots.got_size() / 8),
                    ("plt_entries", layout.slots.plt_size() / 16),
                ]
            },
        )?;

        // UNFORMED: the name is ours, and nobody sees more than that.
        let mut gone = Gone(None);
        let reservation = run.stage(Stage::Reserve, || registry.reserve(&run.module), |_| vec![])?;
        gone.0 = Some(&run);
        run.state(State::Unformed);
        let mut memory = run.stage(Stage::Allocate, || memory::allocate(arena, &layout), |_| vec![])?;
        run.stage(Stage::Copy, || Ok(memory::copy(&file, &layout, &mut memory)), |bytes| vec![("bytes", *bytes)])?;
        let scene = Scene { registry, user: reservation.id, externals: &**externals };
        let resolved = run.stage(
            Stage::Resolve,
            || resolve::resolve(&file, &info, &layout, &memory, scene),
            |resolved| vec![("external", resolved.external)],
        )?;
        run.stage(
            Stage::Relocate,
            || relocate::relocate(&file, &layout, &resolved, &mut memory, arena.is_low()),
            |counts| counts.iter().map(|(name, count)| (name, count.into())).collect(),
        )?;
        let (names, init_names) = names::collect(&file, &layout, &memory, &run.module, policy.trap_descriptor);
        let (names, init_names) = (Arc::new(names), init_names.map(Arc::new));
        memory.own_text(&names, init_names.as_ref());
        let (module, mut memory) = run.stage(
            Stage::Form,
            || {
                let exports = form::exports(&file, &layout, &memory, &names, policy.exports)?;
                let functions = form::functions(&file, &layout, &memory, &names, init_names.as_deref())?;
                let params = form::params(&file, &layout, &memory)?;
                form::name_this_module(&layout, &mut memory, &run.module);
                let module = Arc::new(Module::new(Parts {
                    id: reservation.id,
                    name: run.module.clone(),
                    registry,
                    names,
                    init_names,
                    sections: module::sections(&file, &layout, &memory),
                    ranges: memory.ranges(),
                    functions,
                    params,
                    license: info.license.map(crate::error::escaped),
                }));
                let memory = memory.form()?;
                form::publish_exports(registry, &**externals, reservation.id, exports)?;
                form::enter(registry, reservation.id, &module);
                Ok((module, memory))
            },
            |(module, _)| vec![("params", modload_edit::wide(module.params().len()))],
        )?;

        // COMING: symbols are visible, relocations done, text still staged.
        run.state(State::Coming);
        let accepted = run.stage(Stage::Coming, || chains::coming(run.recorder(), &module, &mut memory), |_| vec![])?;
        // Like `memory` declared before the guard of the chain, so dropped after it: who is told GOING finds the memory
        // in place.
        let mut installed: Installed;
        let mut announced =
            Announced { run: &run, module: module.clone(), accepted: Some(accepted), constructed: Constructed::No };
        let text = run.stage(Stage::Publish, || Ok(memory.publish()?), |_| vec![])?;
        installed = memory.install(text);
        run.recorder().record(|| EventKind::Publish);
        run.stage(
            Stage::Params,
            || {
                let unknown = |name: &str| {
                    let message = format!("unknown parameter \"{}\" ignored", name.escape_debug());
                    tracing::warn!(module = %run.module, "{message}");
                    run.recorder().record(|| EventKind::Warning { message });
                };
                let write = |at, bytes: &[u8]| installed.write(at, bytes);
                params::parse(&mut lock(&module.params), &image.params, &write, unknown)
            },
            |set| vec![("set", *set)],
        )?;
        run.stage(
            Stage::Constructors,
            || {
                entry::constructors(&module.functions.constructors);
                announced.constructed = Constructed::Yes;
                Ok(module.functions.constructors.len())
            },
            |called| vec![("called", modload_edit::wide(*called))],
        )?;
        run.stage(Stage::Init, || init(&run, &module), |_| vec![])?;

        // LIVE.
        let ro_after_init = run.stage(Stage::Protect, || installed.protect(), |_| vec![])?;
        let (core, init) = installed.finish(ro_after_init);
        *lock(&module.core) = Some(core);
        *lock(&module.accepted) = announced.accepted.take().unwrap_or_default();
        drop(announced);
        gone.0 = None;
        let reference = module.get();
        reservation.live();
        run.state(State::Live);
        tracing::info!(module = %run.module, "LIVE");
        chains::live(run.recorder(), &module);
        drop(lock(&module.init_names).take());
        drop(init);
        run.recorder().record(|| EventKind::Stage { stage: Stage::DropInit, detail: vec![] });
        reference.ok_or_else(|| run.failed(Stage::DropInit, Error::Busy))
    }

    /// Has a subscriber join both chains.
    #[must_use = "dropping the membership leaves the chains"]
    pub fn subscribe(&self, name: &str, order: Order, subscriber: Arc<dyn Subscriber>) -> Membership {
        Membership::join(self.registry, name, order, subscriber, None)
    }

    /// [`Loader::subscribe`] for a subscriber whose code is a module's: it is taken out of the chains, with a warning,
    /// if it is still there when the module goes.
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

    /// The module in whose memory an address lies, COMING and GOING ones among them.
    #[must_use]
    pub fn module_at(&self, at: Addr) -> Option<Arc<Module>> {
        let book = self.registry.lock();
        book.modules.iter().filter_map(|entry| entry.module.as_ref()).find(|module| module.contains(at)).cloned()
    }

    /// Records the events of all modules from now on.
    #[must_use]
    pub fn record(&self) -> Recording {
        Recording::start(self.registry)
    }

    /// A reference to the LIVE module of this name.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<Reference> {
        let book = self.registry.lock();
        let entry = book.by_name(name).filter(|entry| entry.state == State::Live)?;
        entry.module.as_ref()?.get()
    }

    /// Names and states of all modules, in order of their loading.
    #[must_use]
    pub fn modules(&self) -> Vec<(String, State)> {
        self.registry.lock().modules.iter().map(|entry| (entry.name.to_string(), entry.state)).collect()
    }

    /// How the arena is used.
    #[must_use]
    pub fn memory(&self) -> [StripeUsage; 4] {
        self.arena.usage()
    }

    /// Unloads a module: `exit`, destructors, the going chain, and its memory.
    ///
    /// # Errors
    /// [`UnloadError`]: it is in use, not LIVE, or not there. It is as it was.
    pub fn unload_module(&self, name: &str) -> Result<(), UnloadError> {
        unload::unload_module(self.registry, name)
    }
}

/// Calls `init` and judges its result as `do_init_module` does.
fn init<F: Faults>(run: &Run<'_, F>, module: &Module) -> Result<i32, Error> {
    let Some(init) = module.functions.init else { return Ok(0) };
    let result = entry::init(init);
    run.recorder().record(|| EventKind::Init { result });
    if result < 0 {
        return Err(Error::Init(result));
    }
    if result > 0 {
        let message = format!("init suspiciously returned {result}; it should follow the 0/-E convention");
        tracing::warn!(module = %run.module, "{message}");
        run.recorder().record(|| EventKind::Warning { message });
    }
    Ok(result)
}

impl Drop for Loader {
    fn drop(&mut self) {
        let names: Vec<_> = self.registry.lock().modules.iter().rev().map(|entry| entry.name.clone()).collect();
        for name in names {
            if let Err(error) = self.unload_module(&name) {
                tracing::error!(%error, "left in memory when its host was dropped");
            }
        }
        self.registry.release();
    }
}
