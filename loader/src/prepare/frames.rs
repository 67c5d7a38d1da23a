//! Call frame information of a module: planned when it is formed, known from its publishing until its text goes.
//!
//! The rows of init text are apart from the others', and go with it: its addresses become another module's.

use modload_threads::frames::{Known, Planned};

/// Rows for a module's text and for its init text.
#[derive(Default, Debug)]
pub(crate) struct Plan(pub(crate) [Option<Planned>; 2]);

/// What is known of the frames of a text, if anything is. Dropping it withdraws it.
pub(crate) type Frames = Option<Known>;

impl Plan {
    /// Makes all rows known.
    pub(crate) fn publish(self) -> [Frames; 2] {
        self.0.map(|planned| planned.and_then(known))
    }
}

/// The text has been this module's alone since it was staged, so that nobody else can have rows for it.
fn known(planned: Planned) -> Frames {
    let published = planned.publish();
    published.inspect_err(|overlap| tracing::error!(%overlap, "frames of a module are not known")).ok().flatten()
}
