//! The second subscriber of both chains: a module is patched before anybody else hears of it, and unpatched after everybody else
//! but tracing has heard that it goes.

use std::ops::Range;
use std::sync::Arc;

use modload_abi::modinfo::is_same_name;
use modload_edit::Addr;
use modload_ftrace::{Ftrace, divert_staged};
use modload_loader::{Coming, Loader, Module, Reference, Refusal, State, Subscriber};

use crate::error::PatchError;
use crate::find::Place;
use crate::operate::Wanted;
use crate::spec::{PatchSpec, Transition};
use crate::status::PatchStatus;
use crate::structs::{self, CPatch, StructError};
use crate::table::{HostId, Log, PatchId, address, install, table};

/// Live patching of one host's modules: its subscriber. Copies are the same.
#[derive(Clone, Copy, Debug)]
pub struct Livepatch {
    host: HostId,
    ftrace: Ftrace,
}

impl Livepatch {
    /// That of a new host, and how threads go over to what its patches bring.
    #[must_use]
    pub fn new(ftrace: Ftrace, transition: Transition) -> Livepatch {
        install();
        Livepatch { host: HostId::new(transition), ftrace }
    }

    /// Enables a patch: Linux's `klp_enable_patch`. Objects that are there are patched now, others when they come. When this
    /// returns, threads may still be on their way ([`Livepatch::status`]).
    ///
    /// `keep` is held as long as the patch is there; `log` takes lines in Linux's wording.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn enable(
        &self,
        loader: &Loader,
        name: &str,
        spec: PatchSpec,
        keep: Option<Reference>,
        log: Log,
    ) -> Result<(), PatchError> {
        // What waits in a module is written for patches that hold it.
        let funcs = spec.objects.iter().flat_map(|object| &object.funcs);
        let of = funcs.filter_map(|func| loader.module_at(func.new_func)).filter(|module| module.slices().is_some());
        let held = |module: &Arc<Module>| keep.as_deref().is_some_and(|keep| std::ptr::eq(keep, &**module));
        if let Some(module) = of.into_iter().find(|module| !held(module)) {
            return Err(PatchError::NotHeld { module: module.name().to_owned() });
        }
        let wanted =
            Wanted { host: self.host, name: name.into(), spec, c_objects: Vec::new(), c_states: Vec::new(), keep, log };
        self.enable_wanted(loader, wanted)
    }

    /// The same from a module's init, which says at `patch` what it wants: `klp_enable_patch(struct klp_patch *)` of the SDK. The
    /// patch has the module's name, holds it, and its lines are the module's.
    ///
    /// # Errors
    /// [`PatchError`]; [`StructError`](crate::StructError): what the module says cannot be followed.
    pub fn enable_from_init(&self, loader: &Loader, module: &Arc<Module>, patch: Addr) -> Result<(), PatchError> {
        let name = || module.name().to_owned();
        let records = match () {
            () if !module.is_live_patch() => Err(StructError::NotMarked(name())),
            () if !module.is_in_init_here() => Err(StructError::NotInInit(name())),
            () => structs::read(module, patch),
        };
        let CPatch { spec, objects, states } =
            records.inspect_err(|error| module.log(format!("livepatch: {error}")))?;
        let keep = module.get().ok_or_else(|| PatchError::Going(name()))?;
        // No reference: those are counted, and shown to who wants to unload it.
        let logging = module.clone();
        let wanted = Wanted {
            host: self.host,
            name: module.name().into(),
            spec,
            c_objects: objects,
            c_states: states,
            keep: Some(keep),
            log: Arc::new(move |line| logging.log(line)),
        };
        self.enable_wanted(loader, wanted)
    }

    fn enable_wanted(&self, loader: &Loader, wanted: Wanted) -> Result<(), PatchError> {
        let modules: Vec<(Arc<Module>, State)> = loader.look();
        let mut table = table()?;
        let alive = table.alive.clone();
        let mut place = |object: Option<&str>| match object {
            None => Some(Place::Host(self.ftrace)),
            Some(name) => {
                let is_it = |(module, state): &&(Arc<Module>, State)| {
                    is_same_name(module.name(), name) && *state != State::Going && alive.contains(&address(module))
                };
                modules.iter().find(is_it).map(|(module, _)| Place::module(module))
            }
        };
        table.enable(wanted, &mut place)
    }

    /// Disables a patch; when it is on its way out already, or in, turns it round: what writing to Linux's
    /// `/sys/kernel/livepatch/PATCH/enabled` does.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn disable(&self, name: &str) -> Result<(), PatchError> {
        let mut table = table()?;
        let (id, enabled) = self.find(&table, name)?;
        match table.transition.as_ref().map(|transition| transition.patch) {
            Some(patch) if patch == id && enabled => table.reverse(),
            _ if !enabled => Err(PatchError::Disabled(name.to_owned())),
            _ => table.disable(id),
        }
    }

    /// Turns the transition of a patch round.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn reverse(&self, name: &str) -> Result<(), PatchError> {
        let mut table = table()?;
        let (id, _) = self.find(&table, name)?;
        if table.transition.as_ref().is_none_or(|transition| transition.patch != id) {
            return Err(PatchError::NoTransition);
        }
        table.reverse()
    }

    /// Ends the transition of a patch wherever threads are: Linux's `force`. Who is in old code finishes it.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn force(&self, name: &str) -> Result<(), PatchError> {
        let mut table = table()?;
        let (id, _) = self.find(&table, name)?;
        if table.transition.as_ref().is_none_or(|transition| transition.patch != id) {
            return Err(PatchError::NoTransition);
        }
        table.force_all()
    }

    /// The patches that are enabled or on their way, in the order in which they came.
    ///
    /// # Errors
    /// [`PatchError::Nested`].
    pub fn status(&self) -> Result<Vec<PatchStatus>, PatchError> {
        let table = table()?;
        table.keep_working();
        Ok(table.patches.iter().filter(|patch| patch.host == self.host).map(|patch| table.status(patch)).collect())
    }

    /// A host is going: its patches are not in force any more.
    pub fn leave(&self) {
        if let Ok(mut table) = table() {
            table.leave(self.host);
        }
    }

    fn find(&self, table: &crate::table::Table, name: &str) -> Result<(PatchId, bool), PatchError> {
        let found = table.patches.iter().find(|patch| patch.host == self.host && is_same_name(&patch.name, name));
        found.map(|patch| (patch.id, patch.enabled)).ok_or_else(|| PatchError::Unknown(name.to_owned()))
    }
}

impl Subscriber for Livepatch {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let mut table = table().map_err(|error| Refusal::from(error.to_string()))?;
        let module = coming.module();
        table.alive.push(address(module));
        // Nobody looks through functions for nothing.
        let name = module.name().to_owned();
        let named = |object: &crate::table::Object| object.name.as_deref() == Some(&*name);
        if !table.patches.iter().any(|patch| patch.host == self.host && patch.objects.iter().any(named)) {
            return Ok(());
        }
        let place = Place::module(module);
        let diverts = table.module_coming(self.host, &place, &name).inspect_err(|_| {
            table.alive.pop();
        })?;
        drop(place);
        divert_staged(coming, &diverts).inspect_err(|_| {
            table.alive.pop();
            table.undo_coming(self.host, &name, None);
        })
    }

    fn going(&self, module: &Module) {
        let Ok(mut table) = table() else { return };
        table.alive.retain(|alive| *alive != address(module));
        table.module_going(self.host, module.name());
        table.abandon(self.host, module);
    }

    fn stand_ins(&self, module: &Module) -> Vec<Range<u64>> {
        table().map(|table| table.stand_ins(self.host, module.name())).unwrap_or_default()
    }

    fn live(&self, module: &Module) {
        if let Ok(table) = table() {
            table.target_is(self.host, module.name(), State::Live);
        }
    }
}
