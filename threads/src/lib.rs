//! The threads of this process: how their stacks unwind, and where that ends.
//!
//! A leaf crate: it imports nothing of modload's, and an address is a `u64` here. What runs in a signal handler says
//! so; it neither allocates nor takes a lock.
//!
//! - [`boundary`]: where exceptions and panics of code that is called end.
//! - [`frames`]: one walker for every thread's stack. It reads call frame information and never guesses.

pub mod boundary;
pub mod frames;
