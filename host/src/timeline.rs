//! What happens to modules, in order, without addresses and times: made for snapshot tests.

pub use modload_loader::{Event, EventKind, Listening, Outcome, Recording, Timeline, Verdict};
