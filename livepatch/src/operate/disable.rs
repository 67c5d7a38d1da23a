//! Disables a patch, and reverses or forces a transition: in Linux, writes to the files of
//! `/sys/kernel/livepatch/PATCH`.

use crate::error::PatchError;
use crate::operate::named;
use crate::previous::Previous;
use crate::table::{Object, PatchId, Table};
use crate::transition::Target;

impl Table {
    /// Linux's `__klp_disable_patch`.
    pub(crate) fn disable(&mut self, id: PatchId) -> Result<(), PatchError> {
        if let Some(transition) = &self.transition {
            return Err(PatchError::InTransition(self.name(transition.patch)));
        }
        self.note(id, "initializing unpatching transition");
        let _previous = Previous::are(self.states_before(id));
        if let Some(patch) = self.patch(id) {
            patch.objects.iter().filter(|object| object.patched).for_each(Object::pre_unpatch);
        }
        self.note(id, "starting unpatching transition");
        let over = self.begin(id, Target::Unpatched)?;
        if let Some(patch) = self.patch_mut(id) {
            patch.enabled = false;
        }
        if over {
            self.complete(id, Target::Unpatched);
        }
        Ok(())
    }

    /// Linux's `klp_reverse_transition`.
    pub(crate) fn reverse(&mut self) -> Result<(), PatchError> {
        let Some((id, from)) = self.transition.as_ref().map(|transition| (transition.patch, transition.target)) else {
            return Err(PatchError::NoTransition);
        };
        self.turn()?;
        let to = if from == Target::Patched { Target::Unpatched } else { Target::Patched };
        self.note(id, &format!("reversing transition from {} to {}", named(from), named(to)));
        if let Some(patch) = self.patch_mut(id) {
            patch.enabled = to == Target::Patched;
        }
        self.note(id, &format!("starting {} transition", named(to)));
        self.go_on()
    }

    /// Linux's `klp_force_transition`.
    pub(crate) fn force_all(&mut self) -> Result<(), PatchError> {
        let Some(id) = self.transition.as_ref().map(|transition| transition.patch) else {
            return Err(PatchError::NoTransition);
        };
        tracing::warn!("livepatch: forcing remaining tasks to the patched state");
        if let Some(patch) = self.patch(id) {
            patch.note("forcing remaining tasks to the patched state");
        }
        let over = self.force()?;
        let replaces = self.patch(id).is_some_and(|patch| patch.replace);
        for patch in self.patches.iter_mut().filter(|patch| patch.id == id || replaces) {
            patch.forced = true;
        }
        if over {
            self.completed();
        }
        Ok(())
    }
}
