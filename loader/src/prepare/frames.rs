//! Call frame information of a module: planned in stage *form*, registered from publication until the text is freed.
//!
//! Rows of init text are registered separately and are removed with init text, because other modules will reuse those
//! addresses.

use modload_threads::frames::{Known, Planned};

/// Rows for a module's text and for init text.
#[derive(Default, Debug)]
pub(crate) struct FramesPlan(pub(crate) [Option<Planned>; 2]);

/// Registered frames of a text, if there are any. Dropping the value removes the registration.
pub(crate) type Frames = Option<Known>;

impl FramesPlan {
    /// Makes all rows known.
    pub(crate) fn publish(self) -> [Frames; 2] {
        self.0.map(|planned| planned.and_then(known))
    }
}

/// Registers rows. No other module can have rows for this text, because the text has belonged to this module since
/// staging.
fn known(planned: Planned) -> Frames {
    let published = planned.publish();
    published.inspect_err(|overlap| tracing::error!(%overlap, "frames of a module are not known")).ok().flatten()
}
