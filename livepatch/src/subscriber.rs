//! The second subscriber of both chains, after tracing. A loading module is patched before any later subscriber is
//! notified. A module that is unloaded is unpatched after all other subscribers except tracing were notified.

use std::ops::Range;
use std::sync::Arc;

use modload_abi::modinfo::is_same_name;
use modload_edit::Addr;
use modload_ftrace::{Ftrace, divert_staged};
use modload_loader::{Coming, Loader, Module, Reference, Refusal, State, Subscriber};

use crate::error::PatchError;
use crate::find::ObjectPlace;
use crate::log::Log;
use crate::operate::{self, WantedPatch};
use crate::patch::{PatchHostId, PatchId, PatchedObject, module_identity};
use crate::patches::Patches;
use crate::spec::{PatchSpec, Transition};
use crate::status::PatchStatus;
use crate::structs::{self, CPatch, StructError};
use crate::table::{install, table};

/// The subscriber for live patching of one host's modules. Copies are the same subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Livepatch {
    host: PatchHostId,
    ftrace: Ftrace,
}

impl Livepatch {
    /// Makes the subscriber of a new host. `transition` says how threads migrate to its patches.
    #[must_use]
    pub fn new(ftrace: Ftrace, transition: Transition) -> Livepatch {
        install();
        Livepatch { host: PatchHostId::new(transition), ftrace }
    }

    /// Enables a patch: Linux's `klp_enable_patch`. Objects that are loaded are patched now, others when they are
    /// loaded. When this returns, threads may still be migrating ([`Livepatch::status`]).
    ///
    /// `keep` is held as long as the patch exists. `log` takes lines in Linux's wording.
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
        // Slices of a module are written only for patches that hold the module.
        let funcs = spec.objects.iter().flat_map(|object| &object.funcs);
        let of = funcs.filter_map(|func| loader.module_at(func.new_func)).filter(|module| module.slices().is_some());
        let held = |module: &Arc<Module>| keep.as_deref().is_some_and(|keep| std::ptr::eq(keep, &**module));
        if let Some(module) = of.into_iter().find(|module| !held(module)) {
            return Err(PatchError::NotHeld { module: module.name().to_owned() });
        }
        let wanted = WantedPatch {
            host: self.host,
            name: name.into(),
            spec,
            c_objects: Vec::new(),
            c_states: Vec::new(),
            keep,
            log,
        };
        self.enable_wanted(loader, wanted)
    }

    /// Like [`Livepatch::enable`], for a module that calls `klp_enable_patch(struct klp_patch *)` of the SDK in its
    /// init. `patch` is the address of its `struct klp_patch`. The patch has the module's name, holds the module, and
    /// logs to the module's log.
    ///
    /// # Errors
    /// [`PatchError`]; [`StructError`](crate::StructError): the module's records are not valid.
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
        // The logger holds no reference: references are counted, and shown to users that want to unload the module.
        let logging = module.clone();
        let wanted = WantedPatch {
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

    fn enable_wanted(&self, loader: &Loader, wanted: WantedPatch) -> Result<(), PatchError> {
        let modules: Vec<(Arc<Module>, State)> = loader.look();
        let mut table = table()?;
        let alive = table.alive.clone();
        let mut place = |object: Option<&str>| match object {
            None => Some(ObjectPlace::Host(self.ftrace)),
            Some(name) => {
                let is_it = |(module, state): &&(Arc<Module>, State)| {
                    is_same_name(module.name(), name)
                        && *state != State::Going
                        && alive.contains(&module_identity(module))
                };
                modules.iter().find(is_it).map(|(module, _)| ObjectPlace::module(module))
            }
        };
        operate::enable(&mut table, wanted, &mut place)
    }

    /// Disables a patch. If the patch is in transition to be enabled, reverses the transition. Linux does this for a
    /// write to `/sys/kernel/livepatch/PATCH/enabled`.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn disable(&self, name: &str) -> Result<(), PatchError> {
        let mut table = table()?;
        let (id, enabled) = self.find(&table.patches, name)?;
        match table.transitions.patch() {
            Some(patch) if patch == id && enabled => operate::reverse(&mut table),
            _ if !enabled => Err(PatchError::Disabled(name.to_owned())),
            _ => operate::disable(&mut table, id),
        }
    }

    /// Reverses the transition of a patch.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn reverse(&self, name: &str) -> Result<(), PatchError> {
        let mut table = table()?;
        let (id, _) = self.find(&table.patches, name)?;
        if table.transitions.patch() != Some(id) {
            return Err(PatchError::NoTransition);
        }
        operate::reverse(&mut table)
    }

    /// Ends the transition of a patch without waiting for threads: Linux's `force`. Threads in old code finish that
    /// code.
    ///
    /// # Errors
    /// [`PatchError`]; [`PatchError::NoTransition`].
    pub fn force(&self, name: &str) -> Result<(), PatchError> {
        let mut table = table()?;
        let (id, _) = self.find(&table.patches, name)?;
        if table.transitions.patch() != Some(id) {
            return Err(PatchError::NoTransition);
        }
        operate::force(&mut table)
    }

    /// Returns the patches that are enabled or in transition, in the order in which they were enabled.
    ///
    /// # Errors
    /// [`PatchError::Nested`].
    pub fn status(&self) -> Result<Vec<PatchStatus>, PatchError> {
        let table = table()?;
        operate::keep_working(&table);
        let active = table.transitions.active.as_ref();
        Ok(table.patches.of_host(self.host).map(|patch| PatchStatus::new(patch, active)).collect())
    }

    /// Withdraws the patches of a host that is dropped.
    pub fn leave(&self) {
        if let Ok(mut table) = table() {
            operate::host_going(&mut table, self.host);
        }
    }

    fn find(&self, patches: &Patches, name: &str) -> Result<(PatchId, bool), PatchError> {
        let found = patches.of_host(self.host).find(|patch| is_same_name(&patch.name, name));
        found.map(|patch| (patch.id, patch.enabled)).ok_or_else(|| PatchError::Unknown(name.to_owned()))
    }
}

impl Subscriber for Livepatch {
    fn coming(&self, coming: &mut Coming<'_>) -> Result<(), Refusal> {
        let mut table = table().map_err(|error| Refusal::from(error.to_string()))?;
        let module = coming.module();
        table.alive.push(module_identity(module));
        // Functions are listed only if a patch names the module.
        let name = module.name().to_owned();
        let named = |object: &PatchedObject| object.name.as_deref() == Some(&*name);
        if !table.patches.of_host(self.host).any(|patch| patch.objects.iter().any(named)) {
            return Ok(());
        }
        let place = ObjectPlace::module(module);
        let diverts = operate::module_coming(&mut table, self.host, &place, &name).inspect_err(|_| {
            table.alive.pop();
        })?;
        drop(place);
        divert_staged(coming, &diverts).inspect_err(|_| {
            table.alive.pop();
            operate::undo_coming(&mut table, self.host, &name, None);
        })
    }

    fn going(&self, module: &Module) {
        let Ok(mut table) = table() else { return };
        table.alive.retain(|alive| *alive != module_identity(module));
        operate::module_going(&mut table, self.host, module);
    }

    fn stand_ins(&self, module: &Module) -> Vec<Range<u64>> {
        table().map(|table| table.stand_ins(self.host, module.name())).unwrap_or_default()
    }

    fn live(&self, module: &Module) {
        if let Ok(table) = table() {
            operate::set_target_state(&table.patches, self.host, module.name(), State::Live);
        }
    }
}
