//! Code between modules and the host's functions, for x86-64.
//!
//! Another processor has to provide: entry points that give the host's functions an aligned stack ([`aligned`]; nothing to
//! do where all code keeps the stack aligned), and functions that pass on the return address of their caller
//! (`with_caller`).

pub(crate) mod aligned;
#[cfg(feature = "process-symbols")]
mod with_caller;

#[cfg(feature = "process-symbols")]
pub(crate) use with_caller::{argument_register, with_caller};
