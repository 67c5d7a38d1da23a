//! Two notifier chains, coming and going, and the order of their calls. Generic: nothing here knows of modules.
//!
//! - [`Order`]: with which priority a member joins both chains. [`Order::mirrored`] makes going the mirror image of
//!   coming; [`Order::same`] keeps one order both ways, as Linux's single module notifier chain does.
//! - [`Chains`]: the members of both chains, and who is being called at the moment. It is plain data without a lock of
//!   its own: its owner locks it to take a snapshot and never while a member is called.
//! - [`call_robust`]: calls a snapshot until somebody refuses, and then takes back what was accepted.

#![forbid(unsafe_code)]

mod call;
mod chains;
mod order;

pub use call::{Refused, call_robust};
pub use chains::{Chains, Member, MemberId};
pub use order::{Order, Rank};
