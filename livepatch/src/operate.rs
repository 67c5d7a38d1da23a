//! Enables and disables patches, and patches modules that are loaded and unloaded: Linux's `kernel/livepatch/core.c`,
//! with its order and its wording.
//!
//! `transition` decides which threads migrate, and when.

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

/// Returns the name of a target in log lines.
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

    /// Logs a line about a patch.
    fn note(&self, id: PatchId, what: &str) {
        if let Some(patch) = self.patch(id) {
            patch.note(&format!("'{}': {what}", patch.name));
        }
    }
}
