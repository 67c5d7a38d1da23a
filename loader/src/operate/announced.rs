//! COMING: a module that subscribers have accepted, and the undo if the module does not become LIVE.
//!
//! [`AnnouncedModule`] owns the module's memory. On any failure, wherever the value is dropped, the module's own clean-up
//! code runs first, then subscribers that have accepted are called with GOING, and only then the memory is freed.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use modload_edit::Addr;
use modload_threads::boundary::Left;

use crate::modules::chains;
use crate::modules::entry;
use crate::modules::error::RegistryError;
use crate::modules::module::{Module, Reference, lock};
use crate::modules::quarantine::QuarantinedMemory;
use crate::modules::recorder::Recorder;
use crate::modules::subscriber::Accepted;
use crate::modules::timeline::EventKind;
use crate::operate::error::Error;
use crate::operate::onlooker::{self, Made, Onlooker, Seen};
use crate::operate::unload;
use crate::prepare::error::PrepareError;
use crate::prepare::memory::{Formed, Init, Installed};
use crate::prepare::params::{self, ParamsSet};
use crate::vocabulary::left::LeftBy;
use crate::vocabulary::rewriting::TrampolineCall;

/// A module that all subscribers have accepted. `M` is the state of the memory.
pub(crate) struct AnnouncedModule<'a, M> {
    /// Dropped first.
    guard: Guard<'a>,
    memory: M,
}

/// Takes the announcement back when dropped.
struct Guard<'a> {
    recorder: Recorder<'a>,
    module: Arc<Module>,
    /// `None` once the module is LIVE.
    accepted: Option<Accepted>,
    ran: RunProgress,
}

/// How much of the module's code has run, and has to be taken back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum RunProgress {
    Nothing,
    Constructors,
    Init,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Some(accepted) = self.accepted.take() else { return };
        chains::set_going(self.recorder, &self.module);
        if self.ran == RunProgress::Init {
            unload::exit(self.recorder, &self.module);
        }
        if self.ran >= RunProgress::Constructors {
            unload::destruct(self.recorder, &self.module);
        }
        chains::going(self.recorder, &self.module, accepted);
        chains::evict(self.recorder, &self.module);
        // Hidden before the memory can be reused.
        self.recorder.registry.hide(self.module.id);
    }
}

/// How many indirect functions were resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndirectResolved(pub(crate) usize);

/// How many constructors were called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constructed(pub(crate) usize);

impl<'a> AnnouncedModule<'a, Formed> {
    /// Stage *coming*: calls the coming chain.
    pub(crate) fn tell(
        recorder: Recorder<'a>,
        module: Arc<Module>,
        mut memory: Formed,
        calls: &[TrampolineCall],
    ) -> Result<Self, Error> {
        let accepted = chains::coming(recorder, &module, &mut memory, calls);
        // Hidden before the memory can be reused.
        let accepted = accepted.inspect_err(|_| recorder.registry.hide(module.id))?;
        Ok(AnnouncedModule {
            guard: Guard { recorder, module, accepted: Some(accepted), ran: RunProgress::Nothing },
            memory,
        })
    }

    /// Stage *publish*: publishes the text, readable and executable.
    pub(crate) fn publish(self) -> Result<AnnouncedModule<'a, Leaving<'a>>, Error> {
        let AnnouncedModule { guard, memory } = self;
        match memory.publish() {
            Ok(memory) => {
                guard.recorder.record(|| EventKind::Publish);
                let memory = Leaving::new(guard.recorder, &guard.module, memory);
                let announced = AnnouncedModule { guard, memory };
                let Guard { recorder, module, accepted, .. } = &announced.guard;
                accepted.as_ref().map_or(Ok(()), |accepted| chains::published(*recorder, module, accepted))?;
                Ok(announced)
            }
            Err(failed) => {
                let (rest, failed) = *failed;
                drop(guard);
                drop(rest);
                Err(PrepareError::from(failed).into())
            }
        }
    }
}

/// Memory of a module whose code can run. When dropped after some code has run, the memory is freed only if no thread
/// is inside.
pub(crate) struct Leaving<'a> {
    recorder: Recorder<'a>,
    module: Arc<Module>,
    /// `None` once the module is LIVE.
    installed: Option<Installed>,
    has_run: Cell<bool>,
}

impl<'a> Leaving<'a> {
    fn new(recorder: Recorder<'a>, module: &Arc<Module>, installed: Installed) -> Leaving<'a> {
        Leaving { recorder, module: module.clone(), installed: Some(installed), has_run: Cell::new(false) }
    }

    /// Some of the module's code is about to run.
    fn runs(&self) {
        self.has_run.set(true);
    }

    fn write(&self, at: Addr, bytes: &[u8]) -> Option<()> {
        self.installed.as_ref()?.write(at, bytes)
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let Some(installed) = self.installed.take() else { return };
        if self.has_run.get() {
            unload::free_or_keep(self.recorder, &self.module, QuarantinedMemory::Failed(installed));
        }
    }
}

impl AnnouncedModule<'_, Leaving<'_>> {
    /// How a function was left, as the error of this load.
    fn left(&self, function: &'static str) -> impl FnOnce(Left) -> Error + use<> {
        let registry = self.guard.module.registry;
        move |left| Error::Thrown { function, thrown: Box::new(LeftBy::describe(registry, left)) }
    }

    /// Shows the module to all onlookers. The text is published, and no code of the module has run.
    pub(crate) fn show(&mut self, onlookers: &[Arc<dyn Onlooker>], made: Made<'_>) {
        let shown = onlooker::show(onlookers, Seen { module: &self.guard.module, made });
        if let Some(installed) = &mut self.memory.installed {
            installed.keep(shown);
        }
    }

    /// Stage *indirect*: calls each resolver and stores the chosen function.
    pub(crate) fn resolve_indirect(&self) -> Result<IndirectResolved, Error> {
        let module = &self.guard.module;
        for &(resolver, slot) in &module.functions.resolvers {
            self.memory.runs();
            let picked = entry::resolver(resolver).map_err(self.left("the resolver of an indirect function"))?;
            let written = Some(picked).filter(|picked| *picked != Addr::NULL);
            if written.and_then(|picked| self.memory.write(slot, &picked.get().to_le_bytes())).is_none() {
                return Err(Error::NotPicked { resolver: module.display_place(resolver).unwrap_or_default() });
            }
        }
        Ok(IndirectResolved(module.functions.resolvers.len()))
    }

    /// Stage *params*: parses the given parameters.
    pub(crate) fn set_params(&self, given: &[String]) -> Result<ParamsSet, PrepareError> {
        let mut unknown = Vec::new();
        let write = |at, bytes: &[u8]| self.memory.write(at, bytes);
        let set =
            params::parse(&mut lock(&self.guard.module.params), given, &write, |name| unknown.push(name.to_owned()));
        // Without the lock of the parameters: the book, which contains the timeline, must be locked before that lock.
        for name in unknown {
            self.guard.recorder.warn(format!("unknown parameter \"{}\" ignored", name.escape_debug()));
        }
        set
    }

    /// Stage *constructors*. After an exception, destructors still run, and the functions that other constructors have
    /// registered with `__cxa_atexit`: they must not be called after the module is freed.
    pub(crate) fn construct(&mut self) -> Result<Constructed, Error> {
        self.guard.ran = RunProgress::Constructors;
        let constructors = &self.guard.module.functions.constructors;
        if !constructors.is_empty() {
            self.memory.runs();
        }
        entry::constructors(constructors).map_err(self.left("a constructor"))?;
        Ok(Constructed(constructors.len()))
    }

    /// Stage *init*: calls `init` and judges the result as Linux's `do_init_module` does.
    pub(crate) fn init(&mut self) -> Result<(), Error> {
        if let Some(init) = self.guard.module.functions.init {
            let recorder = self.guard.recorder;
            self.memory.runs();
            let result = entry::init(init).map_err(self.left("init"))?;
            recorder.record(|| EventKind::Init { result });
            match result {
                ..0 => return Err(Error::Init(result)),
                0 => {}
                1.. => {
                    recorder.warn(format!("init suspiciously returned {result}; it should follow the 0/-E convention"));
                }
            }
        }
        self.guard.ran = RunProgress::Init;
        Ok(())
    }

    /// Stage *protect*: makes ro_after_init data read-only and puts everything into the module's own hands.
    pub(crate) fn protect(self) -> Result<(Reference, Dropped), Error> {
        let AnnouncedModule { mut guard, mut memory } = self;
        // The memory is there until here.
        let Some(installed) = memory.installed.take() else { return Err(RegistryError::Busy.into()) };
        let (core, init) = match installed.protect() {
            Ok(parts) => parts,
            Err(failed) => {
                let (installed, failed) = *failed;
                memory.installed = Some(installed);
                drop(guard);
                drop(memory);
                return Err(PrepareError::Protect(failed).into());
            }
        };
        let module = guard.module.clone();
        module.init_dropped.store(true, Ordering::Release);
        *lock(&module.core) = Some(core);
        *lock(&module.accepted) = guard.accepted.take().unwrap_or_default();
        // The module is not LIVE yet, so no unload can have closed the module.
        module.get().map(|reference| (reference, Dropped(init))).ok_or_else(|| RegistryError::Busy.into())
    }
}

/// Memory that only `init` needed.
pub(crate) struct Dropped(Init);

impl Dropped {
    /// Forgets the symbols of the init sections and frees their memory.
    pub(crate) fn forget(self, module: &Module) {
        let names = {
            let _book = module.registry.lock();
            lock(&module.init_names).take()
        };
        drop(names);
        drop(self.0);
    }
}
