//! Disables a patch, and reverses or forces a transition: in Linux, writes to the files of
//! `/sys/kernel/livepatch/PATCH`.

use super::complete::{complete, complete_active, complete_if_migrated};
use super::worker;
use crate::error::PatchError;
use crate::patch::{PatchId, PatchedObject};
use crate::previous_states::PreviousStates;
use crate::table::PatchTable;
use crate::target::Target;

/// Disables a patch: Linux's `__klp_disable_patch`.
pub(crate) fn disable(table: &mut PatchTable, id: PatchId) -> Result<(), PatchError> {
    let PatchTable { patches, slices, transitions, .. } = &mut *table;
    if let Some(patch) = transitions.patch() {
        return Err(PatchError::InTransition(patches.name(patch)));
    }
    patches.note(id, "initializing unpatching transition");
    let _previous = PreviousStates::provide(patches.states_before(id));
    if let Some(patch) = patches.get(id) {
        patch.objects.iter().filter(|object| object.patched).for_each(PatchedObject::pre_unpatch);
    }
    patches.note(id, "starting unpatching transition");
    let migrated = transitions.begin(patches, slices, id, Target::Unpatched)?;
    if let Some(patch) = patches.get_mut(id) {
        patch.enabled = false;
    }
    if migrated {
        complete(table, id, Target::Unpatched);
    } else {
        worker::start();
    }
    Ok(())
}

/// Reverses the transition under way: Linux's `klp_reverse_transition`.
pub(crate) fn reverse(table: &mut PatchTable) -> Result<(), PatchError> {
    let PatchTable { patches, slices, transitions, .. } = &mut *table;
    let active = transitions.active.as_ref();
    let Some((id, from)) = active.map(|transition| (transition.patch, transition.target)) else {
        return Err(PatchError::NoTransition);
    };
    transitions.reverse(patches, slices)?;
    let to = from.other();
    patches.note(id, &format!("reversing transition from {} to {}", from.log_name(), to.log_name()));
    if let Some(patch) = patches.get_mut(id) {
        patch.enabled = to == Target::Patched;
    }
    patches.note(id, &format!("starting {} transition", to.log_name()));
    complete_if_migrated(table)
}

/// Ends the transition under way without waiting for threads: Linux's `klp_force_transition`.
pub(crate) fn force(table: &mut PatchTable) -> Result<(), PatchError> {
    let PatchTable { patches, slices, transitions, .. } = &mut *table;
    let Some(id) = transitions.patch() else { return Err(PatchError::NoTransition) };
    tracing::warn!("livepatch: forcing remaining tasks to the patched state");
    if let Some(patch) = patches.get(id) {
        patch.note("forcing remaining tasks to the patched state");
    }
    let migrated = transitions.force(patches, slices)?;
    let replaces = patches.get(id).is_some_and(|patch| patch.replace);
    for patch in patches.all.iter_mut().filter(|patch| patch.id == id || replaces) {
        patch.forced = true;
    }
    if migrated {
        complete_active(table);
    }
    Ok(())
}
