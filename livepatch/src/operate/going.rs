//! Unpatches a module that is unloaded, or the modules of a host that is dropped. Patches that cannot stay are
//! withdrawn.

use modload_edit::Addr;
use modload_ftrace::divert;
use modload_loader::{Module, State};

use super::disable::force;
use crate::patch::{Patch, PatchHostId, PatchId};
use crate::patches::Patches;
use crate::previous_states::PreviousStates;
use crate::slices::NoThreadProof;
use crate::table::PatchTable;

/// Unpatches a module that is being unloaded: Linux's `klp_module_going`. Withdraws the patches of the module, if it
/// has any.
pub(crate) fn module_going(table: &mut PatchTable, host: PatchHostId, module: &Module) {
    unpatch_module(table, host, module.name());
    withdraw_patches_of(table, host, module);
}

fn unpatch_module(table: &mut PatchTable, host: PatchHostId, module: &str) {
    let active = table.transitions.patch();
    let _previous = active.map(|patch| PreviousStates::provide(table.patches.states_before(patch)));
    set_target_state(&table.patches, host, module, State::Going);
    let entries = cleanup(table, host, module, None);
    let PatchTable { patches, slices, .. } = table;
    // The module's text may stay, if a thread is inside.
    if let Err(error) = divert(&patches.settled_diverts(&entries)) {
        tracing::error!(%module, %error, "call sites of a module that is unloaded could not be changed back");
    }
    patches.forget(&entries);
    // No call reaches the replacements of the module's functions any more.
    patches.of_host(host).for_each(|patch| slices.take_back_for(patch, module, NoThreadProof::Needed));
    slices.forget_kept_for(patches, host, module);
}

/// Sets the state of a module in the C records of patches that name the module.
pub(crate) fn set_target_state(patches: &Patches, host: PatchHostId, module: &str, state: State) {
    let objects = patches.of_host(host).flat_map(|patch| &patch.objects);
    let named = objects.filter(|object| object.name.as_deref() == Some(module));
    named.filter_map(|object| object.c.as_ref()).for_each(|c| c.set_target_state(state));
}

/// Unpatches a module's functions in the host's patches before `limit`: Linux's `klp_cleanup_module_patches_limited`.
/// Returns the entries of the functions.
pub(super) fn cleanup(table: &mut PatchTable, host: PatchHostId, module: &str, limit: Option<PatchId>) -> Vec<Addr> {
    let PatchTable { patches, slices, transitions, .. } = table;
    let mut entries = Vec::new();
    for id in patches.ids_of_host(host) {
        if Some(id) == limit {
            break;
        }
        let in_transition = transitions.patch() == Some(id);
        let Some(patch) = patches.get(id) else { continue };
        let Some(number) =
            patch.objects.iter().position(|object| object.loaded && object.name.as_deref() == Some(module))
        else {
            continue;
        };
        if !in_transition {
            patch.objects[number].pre_unpatch();
        }
        patch.note(&format!("reverting patch '{}' on unloading module '{module}'", patch.name));
        let gone = patches.unpatch_object(id, number);
        transitions.remove_module(patches, slices, &gone);
        entries.extend(gone);
        if let Some(patch) = patches.get_mut(id) {
            let object = &mut patch.objects[number];
            object.post_unpatch();
            object.set_unloaded();
        }
    }
    entries.sort();
    entries.dedup();
    entries
}

/// Withdraws the patches of a module that is unloaded although its patches should hold it: the module's init has failed
/// after klp_enable_patch, or the module is unloaded by force.
fn withdraw_patches_of(table: &mut PatchTable, host: PatchHostId, module: &Module) {
    let is_kept = |patch: &Patch| {
        let kept = patch.keep.as_deref();
        patch.host == host && kept.is_some_and(|kept| std::ptr::eq(kept, module))
    };
    for name in table.patches.all.iter().filter(|patch| is_kept(patch)).map(|patch| patch.name.clone()) {
        tracing::error!(patch = %name, "the module of an enabled patch is unloaded: the patch is withdrawn, even if threads are in its functions");
    }
    withdraw(table, &is_kept);
    table.slices.forget_kept_in(module);
}

/// Withdraws all patches of a host that is dropped, even if threads are in their functions.
pub(crate) fn host_going(table: &mut PatchTable, host: PatchHostId) {
    withdraw(table, &|patch: &Patch| patch.host == host);
}

/// Withdraws patches at once, without waiting for threads.
fn withdraw(table: &mut PatchTable, which: &dyn Fn(&Patch) -> bool) {
    if !table.patches.all.iter().any(which) {
        return;
    }
    let active = table.transitions.patch().and_then(|patch| table.patches.get(patch));
    if active.is_some_and(which)
        && let Err(error) = force(table)
    {
        tracing::error!(%error, "a transition cannot be ended");
    }
    let PatchTable { patches, slices, .. } = table;
    let ids: Vec<_> = patches.all.iter().rev().filter(|patch| which(patch)).map(|patch| patch.id).collect();
    let entries: Vec<_> = ids.into_iter().flat_map(|id| patches.unpatch_all(id)).collect();
    if let Err(error) = divert(&patches.settled_diverts(&entries)) {
        tracing::error!(%error, "call sites of functions that were patched could not be changed back");
    }
    patches.forget(&entries);
    let gone: Vec<_> = patches.all.extract_if(.., |patch| which(patch)).collect();
    gone.iter().for_each(|patch| slices.take_back_all(patch, NoThreadProof::Needed));
}
