//! Completes a transition after all threads have migrated.

use crate::error::PatchError;
use crate::operate::named;
use crate::previous::Previous;
use crate::slices::Proof;
use crate::table::{PatchId, Table};
use crate::transition::Target;

impl Table {
    /// Completes the transition under way if all threads have migrated.
    pub(crate) fn go_on(&mut self) -> Result<(), PatchError> {
        if self.transition.is_some() && self.try_again()? {
            self.completed();
        }
        Ok(())
    }

    pub(super) fn completed(&mut self) {
        if let Some((id, target)) = self.transition.as_ref().map(|transition| (transition.patch, transition.target)) {
            self.complete(id, target);
        }
    }

    /// Completes a transition: all threads have migrated. Linux's `klp_complete_transition`.
    pub(crate) fn complete(&mut self, id: PatchId, target: Target) {
        let _previous = Previous::are(self.states_before(id));
        self.note(id, &format!("completing {} transition", named(target)));
        if let Some(transition) = self.transition.take() {
            self.stubs.retire(transition.moving.iter().map(|moving| moving.fork));
        }
        let mut entries = Vec::new();
        let mut replaced = Vec::new();
        match target {
            Target::Patched if self.patch(id).is_some_and(|patch| patch.replace) => {
                let host = self.patch(id).map(|patch| patch.host);
                let others: Vec<_> = self
                    .patches
                    .iter()
                    .filter(|patch| patch.id != id && Some(patch.host) == host)
                    .map(|patch| patch.id)
                    .collect();
                for other in others {
                    entries.extend(self.unpatch_all(other));
                    replaced.extend(self.patches.extract_if(.., |patch| patch.id == other));
                }
                entries.extend(self.discard_nops(id));
            }
            Target::Patched => {}
            Target::Unpatched => entries.extend(self.unpatch_all(id)),
        }
        self.forget(&entries);
        if let Some(patch) = self.patch_mut(id) {
            for object in patch.objects.iter_mut().filter(|object| object.loaded) {
                match target {
                    Target::Patched => object.post_patch(),
                    Target::Unpatched => object.post_unpatch(),
                }
            }
        }
        self.note(id, &format!("{} complete", named(target)));
        if target == Target::Unpatched {
            replaced.extend(self.patches.extract_if(.., |patch| patch.id == id));
        }
        for patch in &replaced {
            self.take_slices_back(patch, Proof::by_transition(patch));
        }
        // The modules of replaced patches may be unloaded now.
        drop(replaced);
    }
}
