//! The one language of all rewriting: *at this address, these bytes become those, and this is why*.
//!
//! - [`Addr`]: an address in the space a module will run in; the difference of two is an `i64`.
//! - [`Edit`]: `at`, `old`, `new`, `why`. The engines (relocations, alternatives, paravirt, static keys,
//!   tracing, live patching) are pure functions that feed edits to a [`Sink`].
//! - The sinks: [`EditSet`] keeps edits sorted and disjoint (plans, collisions, explanations),
//!   [`Window`] checks `old` and stores into a buffer (a load), [`Counter`] only counts.
//!
//! This crate never sees a pointer, a file or mapped memory.

#![forbid(unsafe_code)]

mod addr;
mod edit;
mod set;
mod sink;
mod width;

pub use addr::Addr;
pub use edit::{Edit, Engine, Why};
pub use set::EditSet;
pub use sink::{Counter, Rejected, Sink, Window};
pub use width::{index, wide};
