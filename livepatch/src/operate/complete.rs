//! Completes a transition after all threads have migrated.

use crate::error::PatchError;
use crate::patch::PatchId;
use crate::previous_states::PreviousStates;
use crate::slices::NoThreadProof;
use crate::table::PatchTable;
use crate::target::Target;

/// Completes the transition under way if all threads have migrated.
pub(super) fn complete_if_migrated(table: &mut PatchTable) -> Result<(), PatchError> {
    let PatchTable { patches, slices, transitions, .. } = &mut *table;
    if transitions.active.is_some() && transitions.try_again(patches, slices)? {
        complete_active(table);
    }
    Ok(())
}

/// Completes the transition under way: all threads have migrated.
pub(super) fn complete_active(table: &mut PatchTable) {
    let active = table.transitions.active.as_ref();
    if let Some((id, target)) = active.map(|transition| (transition.patch, transition.target)) {
        complete(table, id, target);
    }
}

/// Completes a transition: all threads have migrated. Linux's `klp_complete_transition`.
pub(super) fn complete(table: &mut PatchTable, id: PatchId, target: Target) {
    let PatchTable { patches, slices, transitions, .. } = table;
    let _previous = PreviousStates::provide(patches.states_before(id));
    patches.note(id, &format!("completing {} transition", target.log_name()));
    transitions.finish();
    let mut entries = Vec::new();
    let mut replaced = Vec::new();
    match target {
        Target::Patched if patches.get(id).is_some_and(|patch| patch.replace) => {
            let host = patches.get(id).map(|patch| patch.host);
            let others: Vec<_> = patches
                .all
                .iter()
                .filter(|patch| patch.id != id && Some(patch.host) == host)
                .map(|patch| patch.id)
                .collect();
            for other in others {
                entries.extend(patches.unpatch_all(other));
                replaced.extend(patches.all.extract_if(.., |patch| patch.id == other));
            }
            entries.extend(patches.discard_nops(id));
        }
        Target::Patched => {}
        Target::Unpatched => entries.extend(patches.unpatch_all(id)),
    }
    patches.forget(&entries);
    if let Some(patch) = patches.get_mut(id) {
        for object in patch.objects.iter_mut().filter(|object| object.loaded) {
            match target {
                Target::Patched => object.post_patch(),
                Target::Unpatched => object.post_unpatch(),
            }
        }
    }
    patches.note(id, &format!("{} complete", target.log_name()));
    if target == Target::Unpatched {
        replaced.extend(patches.all.extract_if(.., |patch| patch.id == id));
    }
    for patch in &replaced {
        slices.take_back_all(patch, NoThreadProof::by_transition(patch));
    }
    // The modules of replaced patches may be unloaded now.
    drop(replaced);
}
