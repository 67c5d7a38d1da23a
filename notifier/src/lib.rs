//! Two notifier chains, coming and going, and the order of their calls. This crate is generic and does not know
//! modules.
//!
//! - [`Order`]: the priority with which a member joins both chains. [`Order::mirrored`] makes the going order the
//!   mirror image of the coming order. [`Order::same`] keeps one order in both chains, as Linux's single module
//!   notifier chain does.
//! - [`Chains`]: the members of both chains and the calls under way. `Chains` is plain data without a lock. Its owner
//!   locks it to take a snapshot, and never holds that lock while a member is called.
//! - [`call_robust`]: calls the members of a snapshot. If a member refuses, the members before it are called again to
//!   undo.

#![forbid(unsafe_code)]

mod call;
mod chains;
mod order;

pub use call::{ChainRefused, call_robust};
pub use chains::{ChainMember, Chains, MemberId};
pub use order::{Order, Rank};
