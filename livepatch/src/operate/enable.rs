//! Enables a patch.

use std::collections::BTreeSet;
use std::sync::Arc;

use modload_edit::Addr;
use modload_loader::{Module, Reference};

use crate::error::PatchError;
use crate::find::Place;
use crate::operate::object::object;
use crate::previous::Previous;
use crate::slices::{self, Proof};
use crate::spec::PatchSpec;
use crate::structs::CObject;
use crate::table::{Func, HostId, Log, Object, Patch, PatchId, Patched, Table, note};
use crate::transition::Target;

/// A patch that is to be enabled.
pub(crate) struct Wanted {
    pub(crate) host: HostId,
    pub(crate) name: Arc<str>,
    pub(crate) spec: PatchSpec,
    /// The C records of the module whose init enables the patch: one for each object.
    pub(crate) c_objects: Vec<CObject>,
    pub(crate) c_states: Vec<(u64, Addr)>,
    pub(crate) keep: Option<Reference>,
    pub(crate) log: Log,
}

impl Table {
    /// Enables a patch: Linux's `klp_enable_patch`. `place` returns the objects that are loaded.
    pub(crate) fn enable<'a>(
        &mut self,
        wanted: Wanted,
        place: &mut dyn FnMut(Option<&str>) -> Option<Place<'a>>,
    ) -> Result<(), PatchError> {
        let Wanted { host, name, spec, c_objects, c_states, keep, log } = wanted;
        if spec.objects.is_empty() {
            return Err(PatchError::Empty);
        }
        if self.patches.iter().any(|patch| patch.host == host && patch.name == name) {
            return Err(PatchError::Enabled(name.to_string()));
        }
        if let Some(transition) = &self.transition {
            return Err(PatchError::InTransition(self.name(transition.patch)));
        }
        let PatchSpec { objects, replace, states } = spec;
        let knows = |old: &crate::spec::StateSpec| match states.iter().find(|state| state.id == old.id) {
            Some(state) => state.version >= old.version,
            None => !replace,
        };
        if !self.patches.iter().filter(|patch| patch.host == host).flat_map(|patch| &patch.states).all(knows) {
            note(&log, &format!("Livepatch patch ({name}) is not compatible with the already installed livepatches."));
            return Err(PatchError::Incompatible { patch: name.to_string() });
        }
        let records = c_objects.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let own = keep.as_deref().map(Module::functions).unwrap_or_default();
        let objects =
            objects.into_iter().zip(records).map(|(spec, c)| object(spec, c, &own)).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(object) = objects.iter().find(|object| !names.insert(object.name())) {
            return Err(PatchError::ObjectTwice { object: object.name().to_owned() });
        }
        self.last_patch += 1;
        let id = PatchId(self.last_patch);
        let mut patch =
            Patch { id, host, name, objects, replace, states, enabled: false, forced: false, log, c_states, keep };
        if replace {
            self.add_nops(&mut patch);
        }
        slices::check(&patch).inspect_err(|error| error.note(&patch.log))?;
        let found = match self.find_objects(&mut patch, place) {
            Ok(found) => found,
            Err(error) => {
                error.note(&patch.log);
                self.take_slices_back(&patch, Proof::Had);
                return Err(error);
            }
        };
        patch.note(&format!("enabling patch '{}'", patch.name));
        patch.note(&format!("'{}': initializing patching transition", patch.name));
        self.patches.push(patch);
        for (entry, patched) in found {
            self.functions.entry(entry).or_insert(patched);
        }
        let _previous = Previous::are(self.states_before(id));
        let enabled = self.enable_objects(id).and_then(|()| {
            self.note(id, "starting patching transition");
            self.begin(id, Target::Patched)
        });
        match enabled {
            Ok(over) => {
                if let Some(patch) = self.patch_mut(id) {
                    patch.enabled = true;
                }
                if over {
                    self.complete(id, Target::Patched);
                }
                Ok(())
            }
            Err(error) => {
                self.cancel(id, &error);
                Err(error)
            }
        }
    }

    /// Finds the functions of a new patch's objects that are loaded.
    fn find_objects<'a>(
        &mut self,
        patch: &mut Patch,
        place: &mut dyn FnMut(Option<&str>) -> Option<Place<'a>>,
    ) -> Result<Vec<(Addr, Patched)>, PatchError> {
        let mut found = Vec::new();
        for object in &mut patch.objects {
            let Some(place) = place(object.name.as_deref()) else { continue };
            if let (Some(module), Place::Module(target, _)) = (&patch.keep, &place) {
                self.write_slice(patch.host, patch.id, module, target)?;
            }
            found.extend(object.is_loaded(&place)?);
        }
        Ok(found)
    }

    /// Adds no-op functions to a patch. No-op functions restore the originals of functions that other patches of the
    /// same host have changed and that this patch does not change.
    fn add_nops(&self, patch: &mut Patch) {
        for old in self.patches.iter().filter(|old| old.host == patch.host) {
            for old_object in &old.objects {
                let same = patch.objects.iter().position(|object| object.name == old_object.name);
                let at = same.unwrap_or_else(|| {
                    let object = Object::new(old_object.name.clone(), Vec::new());
                    patch.objects.push(Object { is_dynamic: true, ..object });
                    patch.objects.len() - 1
                });
                let object = &mut patch.objects[at];
                for old in &old_object.funcs {
                    // If a function has another name but the same address, `Object::is_loaded` finds that when the
                    // object is loaded.
                    if !object.funcs.iter().any(|func| func.named() == old.named()) {
                        let nop = Func { new_func: None, old: None, extent: Vec::new(), patched: false, ..old.clone() };
                        object.funcs.push(nop);
                    }
                }
            }
        }
    }

    /// Calls `pre_patch` of all objects that are loaded, and patches their functions.
    fn enable_objects(&mut self, id: PatchId) -> Result<(), PatchError> {
        let count = self.patch(id).map_or(0, |patch| patch.objects.len());
        for number in 0..count {
            let Some(object) = self.patch_mut(id).map(|patch| &mut patch.objects[number]) else { continue };
            if !object.loaded {
                continue;
            }
            let (name, result) = (object.name().to_owned(), object.pre_patch());
            if let Err(errno) = result {
                if let Some(patch) = self.patch(id) {
                    patch.note(&format!("pre-patch callback failed for object '{name}'"));
                }
                return Err(PatchError::Callback { object: name, errno });
            }
            if let Err(source) = self.can_divert(id, number) {
                if let Some(patch) = self.patch(id) {
                    patch.note(&format!("failed to patch object '{name}'"));
                }
                return Err(source);
            }
            self.patch_object(id, number);
        }
        Ok(())
    }

    /// Cancels a patch that could not be enabled: Linux's `klp_cancel_transition`.
    fn cancel(&mut self, id: PatchId, error: &PatchError) {
        tracing::warn!(%error, "a patch could not be enabled");
        if let Some(patch) = self.patch(id) {
            patch.note(&format!("failed to enable patch '{}'", patch.name));
        }
        self.note(id, "canceling patching transition, going to unpatch");
        self.complete(id, Target::Unpatched);
    }
}
