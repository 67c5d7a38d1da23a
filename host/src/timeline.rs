//! The events of modules in order, without addresses and times, for snapshot tests.
//!
//! ```
//! use modload::timeline::EventKind;
//! use modload::{Host, Image, State};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
//! # // SAFETY: the object is one function that adds.
//! # let image = unsafe { Image::trusted(object) }.named("adder");
//! let host = Host::builder().build()?;
//! let recording = host.record();
//! host.load(&image)?.unload()?;
//! let timeline = recording.finish().of("adder");
//! let states = timeline.events.iter().filter_map(|event| match event.kind {
//!     EventKind::State { state } => Some(state),
//!     _ => None,
//! });
//! assert!(states.eq([State::Unformed, State::Coming, State::Live, State::Going]));
//! // The text form is for snapshot tests.
//! println!("{timeline}");
//! # Ok(())
//! # }
//! ```

pub use modload_loader::{Event, EventKind, Listening, Outcome, Recording, Timeline, Verdict};
