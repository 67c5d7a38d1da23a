//! Enables a patch.

use std::collections::BTreeSet;
use std::sync::Arc;

use modload_edit::Addr;
use modload_loader::{Module, Reference};

use super::complete::complete;
use super::worker;
use crate::error::PatchError;
use crate::find::ObjectPlace;
use crate::log::{Log, note};
use crate::object::new_object;
use crate::patch::{Func, Patch, PatchHostId, PatchId, PatchedFunction, PatchedObject};
use crate::patches::Patches;
use crate::previous_states::PreviousStates;
use crate::slices::{self, NoThreadProof, WrittenSlices};
use crate::spec::{PatchSpec, StateSpec};
use crate::structs::CObject;
use crate::table::PatchTable;
use crate::target::Target;

/// A patch that is to be enabled.
pub(crate) struct WantedPatch {
    pub(crate) host: PatchHostId,
    pub(crate) name: Arc<str>,
    pub(crate) spec: PatchSpec,
    /// The C records of the module whose init enables the patch: one for each object.
    pub(crate) c_objects: Vec<CObject>,
    pub(crate) c_states: Vec<(u64, Addr)>,
    pub(crate) keep: Option<Reference>,
    pub(crate) log: Log,
}

/// Enables a patch: Linux's `klp_enable_patch`. `place` returns the objects that are loaded.
pub(crate) fn enable<'a>(
    table: &mut PatchTable,
    wanted: WantedPatch,
    place: &mut dyn FnMut(Option<&str>) -> Option<ObjectPlace<'a>>,
) -> Result<(), PatchError> {
    let PatchTable { patches, slices, transitions, .. } = &mut *table;
    let WantedPatch { host, name, spec, c_objects, c_states, keep, log } = wanted;
    if spec.objects.is_empty() {
        return Err(PatchError::Empty);
    }
    if patches.of_host(host).any(|patch| patch.name == name) {
        return Err(PatchError::Enabled(name.to_string()));
    }
    if let Some(patch) = transitions.patch() {
        return Err(PatchError::InTransition(patches.name(patch)));
    }
    let PatchSpec { objects, replace, states } = spec;
    let knows = |old: &StateSpec| match states.iter().find(|state| state.id == old.id) {
        Some(state) => state.version >= old.version,
        None => !replace,
    };
    if !patches.of_host(host).flat_map(|patch| &patch.states).all(knows) {
        note(&log, &format!("Livepatch patch ({name}) is not compatible with the already installed livepatches."));
        return Err(PatchError::Incompatible { patch: name.to_string() });
    }
    let records = c_objects.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let own = keep.as_deref().map(Module::functions).unwrap_or_default();
    let objects =
        objects.into_iter().zip(records).map(|(spec, c)| new_object(spec, c, &own)).collect::<Result<Vec<_>, _>>()?;
    let mut names = BTreeSet::new();
    if let Some(object) = objects.iter().find(|object| !names.insert(object.name())) {
        return Err(PatchError::ObjectTwice { object: object.name().to_owned() });
    }
    let id = patches.new_id();
    let mut patch =
        Patch { id, host, name, objects, replace, states, enabled: false, forced: false, log, c_states, keep };
    if replace {
        add_nops(patches, &mut patch);
    }
    slices::check(&patch).inspect_err(|error| error.note(&patch.log))?;
    let found = match find_objects(slices, &mut patch, place) {
        Ok(found) => found,
        Err(error) => {
            error.note(&patch.log);
            slices.take_back_all(&patch, NoThreadProof::Given);
            return Err(error);
        }
    };
    patch.note(&format!("enabling patch '{}'", patch.name));
    patch.note(&format!("'{}': initializing patching transition", patch.name));
    patches.all.push(patch);
    patches.add_functions(found);
    let _previous = PreviousStates::provide(patches.states_before(id));
    let begun = enable_objects(patches, id).and_then(|()| {
        patches.note(id, "starting patching transition");
        transitions.begin(patches, slices, id, Target::Patched)
    });
    match begun {
        Ok(migrated) => {
            if let Some(patch) = patches.get_mut(id) {
                patch.enabled = true;
            }
            if migrated {
                complete(table, id, Target::Patched);
            } else {
                worker::start();
            }
            Ok(())
        }
        Err(error) => {
            cancel(table, id, &error);
            Err(error)
        }
    }
}

/// Finds the functions of a new patch's objects that are loaded.
fn find_objects<'a>(
    slices: &mut WrittenSlices,
    patch: &mut Patch,
    place: &mut dyn FnMut(Option<&str>) -> Option<ObjectPlace<'a>>,
) -> Result<Vec<(Addr, PatchedFunction)>, PatchError> {
    let mut found = Vec::new();
    for object in &mut patch.objects {
        let Some(place) = place(object.name.as_deref()) else { continue };
        if let (Some(module), ObjectPlace::Module(target, _)) = (&patch.keep, &place) {
            slices.write(patch.host, patch.id, module, target)?;
        }
        found.extend(object.set_loaded(&place)?);
    }
    Ok(found)
}

/// Adds no-op functions to a patch. No-op functions restore the originals of functions that other patches of the
/// same host have changed and that this patch does not change.
fn add_nops(patches: &Patches, patch: &mut Patch) {
    for old in patches.of_host(patch.host) {
        for old_object in &old.objects {
            let same = patch.objects.iter().position(|object| object.name == old_object.name);
            let at = same.unwrap_or_else(|| {
                let object = PatchedObject::new(old_object.name.clone(), Vec::new());
                patch.objects.push(PatchedObject { is_dynamic: true, ..object });
                patch.objects.len() - 1
            });
            let object = &mut patch.objects[at];
            for old in &old_object.funcs {
                // If a function has another name but the same address, `PatchedObject::set_loaded` finds that when the
                // object is loaded.
                if !object.funcs.iter().any(|func| func.key() == old.key()) {
                    let nop = Func { new_func: None, old: None, extent: Vec::new(), patched: false, ..old.clone() };
                    object.funcs.push(nop);
                }
            }
        }
    }
}

/// Calls `pre_patch` of all objects that are loaded, and patches their functions.
fn enable_objects(patches: &mut Patches, id: PatchId) -> Result<(), PatchError> {
    let count = patches.get(id).map_or(0, |patch| patch.objects.len());
    for number in 0..count {
        let Some(object) = patches.get_mut(id).map(|patch| &mut patch.objects[number]) else { continue };
        if !object.loaded {
            continue;
        }
        let (name, result) = (object.name().to_owned(), object.pre_patch());
        if let Err(errno) = result {
            if let Some(patch) = patches.get(id) {
                patch.note(&format!("pre-patch callback failed for object '{name}'"));
            }
            return Err(PatchError::Callback { object: name, errno });
        }
        if let Err(source) = patches.can_divert(id, number) {
            if let Some(patch) = patches.get(id) {
                patch.note(&format!("failed to patch object '{name}'"));
            }
            return Err(source);
        }
        patches.patch_object(id, number);
    }
    Ok(())
}

/// Cancels a patch that could not be enabled: Linux's `klp_cancel_transition`.
fn cancel(table: &mut PatchTable, id: PatchId, error: &PatchError) {
    tracing::warn!(%error, "a patch could not be enabled");
    if let Some(patch) = table.patches.get(id) {
        patch.note(&format!("failed to enable patch '{}'", patch.name));
    }
    table.patches.note(id, "canceling patching transition, going to unpatch");
    complete(table, id, Target::Unpatched);
}
