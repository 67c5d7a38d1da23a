//! Patches a module that is being loaded, before any of its code runs, or refuses the module.

use modload_edit::Addr;
use modload_ftrace::Divert;
use modload_loader::{Refusal, sentence};

use crate::error::PatchError;
use crate::find::Place;
use crate::previous::Previous;
use crate::slices::Proof;
use crate::table::{HostId, PatchId, Table};

impl Table {
    /// Applies all patches that name the loading module to the module's functions, before any of its code runs. Linux's
    /// `klp_module_coming`.
    pub(crate) fn module_coming(
        &mut self,
        host: HostId,
        place: &Place<'_>,
        module: &str,
    ) -> Result<Vec<Divert>, Refusal> {
        let _previous = self.transition.as_ref().map(|transition| Previous::are(self.states_before(transition.patch)));
        let ids: Vec<_> = self.patches.iter().filter(|patch| patch.host == host).map(|patch| patch.id).collect();
        let mut entries = Vec::new();
        for id in ids {
            let patch = self.patches.iter_mut().find(|patch| patch.id == id);
            let object =
                patch.and_then(|patch| patch.objects.iter().position(|object| object.name.as_deref() == Some(module)));
            let Some(number) = object else { continue };
            match self.object_coming((host, id), number, place, module) {
                Ok(more) => entries.extend(more),
                Err(error) => {
                    let name = self.name(id);
                    if let Some(patch) = self.patch(id) {
                        patch.note(&format!(
                            "patch '{name}' failed for module '{module}', refusing to load module '{module}'"
                        ));
                    }
                    self.undo_coming(host, module, Some((id, number)));
                    let reason = format!("patch '{name}' failed for module '{module}': {}", sentence(&error));
                    return Err(Refusal { reason, errno: Some(error.errno()) });
                }
            }
        }
        entries.sort();
        entries.dedup();
        let moving = self.transition.iter().flat_map(|transition| &transition.moving);
        let stubs: std::collections::BTreeMap<_, _> = moving.map(|moving| (moving.entry, moving.fork.stub())).collect();
        let to = |divert: Divert| Divert { to: stubs.get(&divert.entry).copied().or(divert.to), ..divert };
        Ok(self.settle(&entries).into_iter().map(to).collect())
    }

    fn object_coming(
        &mut self,
        (host, id): (HostId, PatchId),
        number: usize,
        place: &Place<'_>,
        module: &str,
    ) -> Result<Vec<Addr>, PatchError> {
        let in_transition = self.transition.as_ref().is_some_and(|transition| transition.patch == id);
        let keep = self.patch(id).and_then(|patch| patch.keep.clone());
        let written = match (&keep, place) {
            (Some(keep), Place::Module(target, _)) => self.write_slice(host, id, keep, target),
            _ => Ok(()),
        };
        let Some(patch) = self.patch_mut(id) else { return Ok(Vec::new()) };
        let found = written.and_then(|()| patch.objects[number].is_loaded(place));
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
        if let Err(error) = self.can_divert(id, number) {
            if let Some(patch) = self.patch_mut(id) {
                let (name, errno) = (&patch.name, error.errno());
                patch.note(&format!("failed to apply patch '{name}' to module '{module}' (-{errno})"));
                patch.objects[number].post_unpatch();
            }
            return Err(error);
        }
        let mut entries = Vec::new();
        for (entry, patched) in found {
            entries.push(entry);
            self.functions.entry(entry).or_insert(patched);
        }
        self.patch_object(id, number);
        if in_transition {
            self.join(id)?;
        } else if let Some(patch) = self.patch(id) {
            patch.objects[number].post_patch();
        }
        Ok(entries)
    }

    /// Undoes patches for a target that is refused: all patches before the failed one, and the failed one, whose object
    /// is given. Undoes all patches if none has failed.
    pub(crate) fn undo_coming(&mut self, host: HostId, module: &str, failed: Option<(PatchId, usize)>) {
        let mut entries = Vec::new();
        if let Some((id, number)) = failed {
            let gone = self.unpatch_object(id, number);
            self.part(&gone);
            entries = gone;
            if let Some(patch) = self.patch_mut(id) {
                patch.objects[number].post_unpatch();
                patch.objects[number].is_unloaded();
            }
        }
        entries.extend(self.cleanup(host, module, failed.map(|(id, _)| id)));
        self.forget(&entries);
        // None of the module's code has run.
        let patches: Vec<_> = self.patches.iter().filter(|patch| patch.host == host).map(|patch| patch.id).collect();
        patches.into_iter().for_each(|patch| self.object_goes(patch, module, Proof::Had));
    }
}
