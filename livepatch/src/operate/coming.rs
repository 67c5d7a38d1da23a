//! Patches a module that is being loaded, before any of its code runs, or refuses the module.

use std::collections::BTreeMap;

use modload_edit::Addr;
use modload_ftrace::Divert;
use modload_loader::{Refusal, sentence};

use super::going::cleanup;
use crate::error::PatchError;
use crate::find::ObjectPlace;
use crate::patch::{PatchHostId, PatchId};
use crate::previous_states::PreviousStates;
use crate::slices::NoThreadProof;
use crate::table::PatchTable;

/// Applies all patches that name the loading module to the module's functions, before any of its code runs. Linux's
/// `klp_module_coming`.
pub(crate) fn module_coming(
    table: &mut PatchTable,
    host: PatchHostId,
    place: &ObjectPlace<'_>,
    module: &str,
) -> Result<Vec<Divert>, Refusal> {
    let active = table.transitions.patch();
    let _previous = active.map(|patch| PreviousStates::provide(table.patches.states_before(patch)));
    let mut entries = Vec::new();
    for id in table.patches.ids_of_host(host) {
        let object = table
            .patches
            .get(id)
            .and_then(|patch| patch.objects.iter().position(|object| object.name.as_deref() == Some(module)));
        let Some(number) = object else { continue };
        match object_coming(table, (host, id), number, place, module) {
            Ok(more) => entries.extend(more),
            Err(error) => {
                let name = table.patches.name(id);
                if let Some(patch) = table.patches.get(id) {
                    patch.note(&format!(
                        "patch '{name}' failed for module '{module}', refusing to load module '{module}'"
                    ));
                }
                undo_coming(table, host, module, Some((id, number)));
                let reason = format!("patch '{name}' failed for module '{module}': {}", sentence(&error));
                return Err(Refusal { reason, errno: Some(error.errno()) });
            }
        }
    }
    entries.sort();
    entries.dedup();
    let moving = table.transitions.active.iter().flat_map(|transition| &transition.moving);
    let stubs: BTreeMap<_, _> = moving.map(|moving| (moving.entry, moving.stub.addr())).collect();
    let to = |divert: Divert| Divert { to: stubs.get(&divert.entry).copied().or(divert.to), ..divert };
    Ok(table.patches.settled_diverts(&entries).into_iter().map(to).collect())
}

fn object_coming(
    table: &mut PatchTable,
    (host, id): (PatchHostId, PatchId),
    number: usize,
    place: &ObjectPlace<'_>,
    module: &str,
) -> Result<Vec<Addr>, PatchError> {
    let PatchTable { patches, slices, transitions, .. } = table;
    let in_transition = transitions.patch() == Some(id);
    let keep = patches.get(id).and_then(|patch| patch.keep.clone());
    let written = match (&keep, place) {
        (Some(keep), ObjectPlace::Module(target, _)) => slices.write(host, id, keep, target),
        _ => Ok(()),
    };
    let Some(patch) = patches.get_mut(id) else { return Ok(Vec::new()) };
    let found = written.and_then(|()| patch.objects[number].set_loaded(place));
    let found = found.inspect_err(|error| {
        error.note(&patch.log);
        let (name, errno) = (&patch.name, error.errno());
        patch.note(&format!("failed to initialize patch '{name}' for module '{module}' (-{errno})"));
    })?;
    patch.note(&format!("applying patch '{}' to loading module '{module}'", patch.name));
    if let Err(errno) = patch.objects[number].pre_patch() {
        patch.note(&format!("pre-patch callback failed for object '{module}'"));
        return Err(PatchError::Callback { object: module.to_owned(), errno });
    }
    if let Err(error) = patches.can_divert(id, number) {
        if let Some(patch) = patches.get_mut(id) {
            let (name, errno) = (&patch.name, error.errno());
            patch.note(&format!("failed to apply patch '{name}' to module '{module}' (-{errno})"));
            patch.objects[number].post_unpatch();
        }
        return Err(error);
    }
    let entries = found.iter().map(|(entry, _)| *entry).collect();
    patches.add_functions(found);
    patches.patch_object(id, number);
    if in_transition {
        transitions.add_module(patches, slices, id)?;
    } else if let Some(patch) = patches.get(id) {
        patch.objects[number].post_patch();
    }
    Ok(entries)
}

/// Undoes patches for a target that is refused: all patches before the failed one, and the failed one, whose object is
/// given. Undoes all patches if none has failed.
pub(crate) fn undo_coming(table: &mut PatchTable, host: PatchHostId, module: &str, failed: Option<(PatchId, usize)>) {
    let mut entries = Vec::new();
    if let Some((id, number)) = failed {
        let PatchTable { patches, slices, transitions, .. } = &mut *table;
        let gone = patches.unpatch_object(id, number);
        transitions.remove_module(patches, slices, &gone);
        entries = gone;
        if let Some(patch) = patches.get_mut(id) {
            patch.objects[number].post_unpatch();
            patch.objects[number].set_unloaded();
        }
    }
    entries.extend(cleanup(table, host, module, failed.map(|(id, _)| id)));
    let PatchTable { patches, slices, .. } = table;
    patches.forget(&entries);
    // None of the module's code has run.
    patches.of_host(host).for_each(|patch| slices.take_back_for(patch, module, NoThreadProof::Given));
}
