//! The events of modules in order, without addresses and times, for snapshot tests.

pub use modload_loader::{Event, EventKind, Listening, Outcome, Recording, Timeline, Verdict};
