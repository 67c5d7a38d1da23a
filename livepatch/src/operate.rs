//! Patches are enabled and disabled, modules come and go: Linux's `kernel/livepatch/core.c`, with its order and its wording.
//!
//! Who goes over when is not decided here, but in `transition`.

mod object;
mod enable;
mod stack;
mod complete;
mod disable;
mod coming;
mod going;

use crate::table::{PatchId, Table};
use crate::transition::Target;

pub(crate) use enable::Wanted;

/// How lines name a target.
fn named(target: Target) -> &'static str {
    match target {
        Target::Patched => "patching",
        Target::Unpatched => "unpatching",
    }
}

impl Table {
    fn name(&self, id: PatchId) -> String {
        self.patch(id).map(|patch| patch.name.to_string()).unwrap_or_default()
    }

    /// Notes what a patch does.
    fn note(&self, id: PatchId, what: &str) {
        if let Some(patch) = self.patch(id) {
            patch.note(&format!("'{}': {what}", patch.name));
        }
    }
}
