//! Unpatches a module that is unloaded, or the modules of a host that is dropped. Patches that cannot stay are
//! withdrawn.

use modload_edit::Addr;
use modload_ftrace::divert;
use modload_loader::{Module, State};

use crate::previous::Previous;
use crate::slices::Proof;
use crate::table::{HostId, Patch, PatchId, Table};

impl Table {
    /// Unpatches a module that is being unloaded: Linux's `klp_module_going`.
    pub(crate) fn module_going(&mut self, host: HostId, module: &str) {
        let _previous = self.transition.as_ref().map(|transition| Previous::are(self.states_before(transition.patch)));
        self.target_is(host, module, State::Going);
        let entries = self.cleanup(host, module, None);
        // The module's text may stay, if a thread is inside.
        if let Err(error) = divert(&self.settle(&entries)) {
            tracing::error!(%module, %error, "sites of a module that goes stay as they are");
        }
        self.forget(&entries);
        // No call reaches the replacements of the module's functions any more.
        let patches: Vec<_> = self.patches.iter().filter(|patch| patch.host == host).map(|patch| patch.id).collect();
        patches.into_iter().for_each(|patch| self.object_goes(patch, module, Proof::Needed));
        self.forget_left_for(host, module);
    }

    /// Sets the state of a module in the C records of patches that name the module.
    pub(crate) fn target_is(&self, host: HostId, module: &str, state: State) {
        let objects = self.patches.iter().filter(|patch| patch.host == host).flat_map(|patch| &patch.objects);
        let named = objects.filter(|object| object.name.as_deref() == Some(module));
        named.filter_map(|object| object.c.as_ref()).for_each(|c| c.is_now(state));
    }

    /// Unpatches a module's functions in the host's patches before `limit`: Linux's
    /// `klp_cleanup_module_patches_limited`.
    pub(super) fn cleanup(&mut self, host: HostId, module: &str, limit: Option<PatchId>) -> Vec<Addr> {
        let ids: Vec<_> = self.patches.iter().filter(|patch| patch.host == host).map(|patch| patch.id).collect();
        let mut entries = Vec::new();
        for id in ids {
            if Some(id) == limit {
                break;
            }
            let in_transition = self.transition.as_ref().is_some_and(|transition| transition.patch == id);
            let Some(patch) = self.patch(id) else { continue };
            let Some(number) =
                patch.objects.iter().position(|object| object.loaded && object.name.as_deref() == Some(module))
            else {
                continue;
            };
            if !in_transition {
                patch.objects[number].pre_unpatch();
            }
            patch.note(&format!("reverting patch '{}' on unloading module '{module}'", patch.name));
            let gone = self.unpatch_object(id, number);
            self.part(&gone);
            entries.extend(gone);
            if let Some(patch) = self.patch_mut(id) {
                let object = &mut patch.objects[number];
                object.post_unpatch();
                object.is_unloaded();
            }
        }
        entries.sort();
        entries.dedup();
        entries
    }

    /// Withdraws the patches of a module that is unloaded although its patches should hold it: the module's init has
    /// failed after klp_enable_patch, or the module is unloaded by force.
    pub(crate) fn abandon(&mut self, host: HostId, module: &Module) {
        let is_kept = |patch: &Patch| {
            let kept = patch.keep.as_deref();
            patch.host == host && kept.is_some_and(|kept| std::ptr::eq(kept, module))
        };
        for name in self.patches.iter().filter(|patch| is_kept(patch)).map(|patch| patch.name.clone()) {
            tracing::error!(patch = %name, "the module of a patch goes: it is not in force any more, whoever is in its functions");
        }
        self.withdraw(&is_kept);
        self.forget_left_in(module);
    }

    /// Withdraws all patches of a host that is dropped, even if threads are in their functions.
    pub(crate) fn leave(&mut self, host: HostId) {
        self.withdraw(&|patch: &Patch| patch.host == host);
    }

    /// Withdraws patches at once, without waiting for threads.
    fn withdraw(&mut self, which: &dyn Fn(&Patch) -> bool) {
        if !self.patches.iter().any(which) {
            return;
        }
        if self.transition.as_ref().is_some_and(|transition| self.patch(transition.patch).is_some_and(which))
            && let Err(error) = self.force_all()
        {
            tracing::error!(%error, "a transition cannot be ended");
        }
        let ids: Vec<_> = self.patches.iter().rev().filter(|patch| which(patch)).map(|patch| patch.id).collect();
        let entries: Vec<_> = ids.into_iter().flat_map(|id| self.unpatch_all(id)).collect();
        if let Err(error) = divert(&self.settle(&entries)) {
            tracing::error!(%error, "sites of functions that were patched stay as they are");
        }
        self.forget(&entries);
        let gone: Vec<_> = self.patches.extract_if(.., |patch| which(patch)).collect();
        gone.iter().for_each(|patch| self.take_slices_back(patch, Proof::Needed));
    }
}
