//! The threads of this process: how their stacks unwind.
//!
//! A leaf crate: it imports nothing of modload's, and an address is a `u64` here. What runs in a signal handler says
//! so; it neither allocates nor takes a lock.
//!
//! - [`frames`]: one walker for every thread's stack. It reads call frame information and never guesses.

pub mod frames;
