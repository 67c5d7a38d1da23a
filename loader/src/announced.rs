//! COMING: a module that has been announced, and how it is taken back if it does not become LIVE.
//!
//! [`Announced`] owns the module's memory. Whatever fails, and wherever it is dropped, first its code does what it must
//! still do and those who accepted the module are told that it is GOING, and only then its memory is freed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use modload_edit::Addr;

use crate::chains::{self, Accepted};
use crate::entry;
use crate::error::Error;
use crate::memory::{Formed, Init, Installed};
use crate::module::{Module, Reference, lock};
use crate::onlooker::{self, Made, Onlooker, Seen};
use crate::params::{self, ParamsSet};
use crate::specialise::TrampolineCall;
use crate::timeline::{EventKind, Recorder};
use crate::unload;

/// A module that everybody has agreed to. `M` says what can still be done with its memory.
pub(crate) struct Announced<'a, M> {
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
    ran: Ran,
}

/// How much of the module's code has run, and has to be taken back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ran {
    Nothing,
    Constructors,
    Init,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Some(accepted) = self.accepted.take() else { return };
        chains::set_going(self.recorder, &self.module);
        if self.ran == Ran::Init {
            unload::exit(self.recorder, &self.module);
        }
        if self.ran >= Ran::Constructors {
            unload::destruct(self.recorder, &self.module);
        }
        chains::going(self.recorder, &self.module, accepted);
        chains::evict(self.recorder, &self.module);
        // Before its memory can be another's.
        self.recorder.registry.hide(self.module.id);
    }
}

/// How many indirect functions were resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndirectResolved(pub(crate) usize);

/// How many constructors were called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constructed(pub(crate) usize);

impl<'a> Announced<'a, Formed> {
    /// Stage *coming*: tells the coming chain.
    pub(crate) fn tell(
        recorder: Recorder<'a>,
        module: Arc<Module>,
        mut memory: Formed,
        calls: &[TrampolineCall],
    ) -> Result<Self, Error> {
        let accepted = chains::coming(recorder, &module, &mut memory, calls);
        // Before its memory can be another's.
        let accepted = accepted.inspect_err(|_| recorder.registry.hide(module.id))?;
        Ok(Announced { guard: Guard { recorder, module, accepted: Some(accepted), ran: Ran::Nothing }, memory })
    }

    /// Stage *publish*: brings the text to its place, readable and executable.
    pub(crate) fn publish(self) -> Result<Announced<'a, Installed>, Error> {
        let Announced { guard, memory } = self;
        match memory.publish() {
            Ok(memory) => {
                guard.recorder.record(|| EventKind::Publish);
                let announced = Announced { guard, memory };
                let Guard { recorder, module, accepted, .. } = &announced.guard;
                accepted.as_ref().map_or(Ok(()), |accepted| chains::published(*recorder, module, accepted))?;
                Ok(announced)
            }
            Err(failed) => {
                let (rest, failed) = *failed;
                drop(guard);
                drop(rest);
                Err(failed.into())
            }
        }
    }
}

impl Announced<'_, Installed> {
    /// Shows the module to whoever looks, now that its text is there and before its code runs.
    pub(crate) fn show(&mut self, onlookers: &[Arc<dyn Onlooker>], made: Made<'_>) {
        self.memory.keep(onlooker::show(onlookers, Seen { module: &self.guard.module, made }));
    }

    /// Stage *indirect*: has each resolver pick its function.
    pub(crate) fn resolve_indirect(&self) -> Result<IndirectResolved, Error> {
        let module = &self.guard.module;
        for &(resolver, slot) in &module.functions.resolvers {
            let thrown = |thrown| Error::Thrown { function: "the resolver of an indirect function", thrown };
            let picked = entry::resolver(resolver).map_err(thrown)?;
            let written = Some(picked).filter(|picked| *picked != Addr::NULL);
            if written.and_then(|picked| self.memory.write(slot, &picked.get().to_le_bytes())).is_none() {
                return Err(Error::NotPicked { resolver: module.display_place(resolver).unwrap_or_default() });
            }
        }
        Ok(IndirectResolved(module.functions.resolvers.len()))
    }

    /// Stage *params*: parses what the module was given.
    pub(crate) fn set_params(&self, given: &[String]) -> Result<ParamsSet, Error> {
        let mut unknown = Vec::new();
        let write = |at, bytes: &[u8]| self.memory.write(at, bytes);
        let set =
            params::parse(&mut lock(&self.guard.module.params), given, &write, |name| unknown.push(name.to_owned()));
        // Without the lock of the parameters: the book, which the timeline is in, is taken before it.
        for name in unknown {
            self.guard.recorder.warn(format!("unknown parameter \"{}\" ignored", name.escape_debug()));
        }
        set
    }

    /// Stage *constructors*. If one throws, destructors run all the same, and what the others have registered with
    /// `__cxa_atexit`: it must not be called when the module is gone.
    pub(crate) fn construct(&mut self) -> Result<Constructed, Error> {
        let constructors = &self.guard.module.functions.constructors;
        self.guard.ran = Ran::Constructors;
        entry::constructors(constructors).map_err(|thrown| Error::Thrown { function: "a constructor", thrown })?;
        Ok(Constructed(constructors.len()))
    }

    /// Stage *init*: calls `init` and judges its result as Linux's `do_init_module` does.
    pub(crate) fn init(&mut self) -> Result<(), Error> {
        if let Some(init) = self.guard.module.functions.init {
            let recorder = self.guard.recorder;
            let result = entry::init(init).map_err(|thrown| Error::Thrown { function: "init", thrown })?;
            recorder.record(|| EventKind::Init { result });
            match result {
                ..0 => return Err(Error::Init(result)),
                0 => {}
                1.. => {
                    recorder.warn(format!("init suspiciously returned {result}; it should follow the 0/-E convention"));
                }
            }
        }
        self.guard.ran = Ran::Init;
        Ok(())
    }

    /// Stage *protect*: makes ro_after_init data read-only and puts everything into the module's own hands.
    pub(crate) fn protect(self) -> Result<(Reference, Dropped), Error> {
        let Announced { mut guard, memory } = self;
        let (core, init) = match memory.protect() {
            Ok(parts) => parts,
            Err(failed) => {
                let (memory, failed) = *failed;
                drop(guard);
                drop(memory);
                return Err(Error::Protect(failed));
            }
        };
        let module = guard.module.clone();
        module.init_dropped.store(true, Ordering::Release);
        *lock(&module.core) = Some(core);
        *lock(&module.accepted) = guard.accepted.take().unwrap_or_default();
        // Nobody can have closed it: it is not LIVE yet.
        module.get().map(|reference| (reference, Dropped(init))).ok_or(Error::Busy)
    }
}

/// What `init` needed and nobody needs any more.
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
