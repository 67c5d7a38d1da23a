//! The log of a patch: lines in Linux's wording.

use std::sync::Arc;

/// Logs a line of live patching.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// Logs a line for a patch.
pub(crate) fn note(log: &Log, line: &str) {
    tracing::info!("livepatch: {line}");
    log(&format!("livepatch: {line}"));
}
