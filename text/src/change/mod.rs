//! Changes of published text.
//!
//! Owns the protocols of `poke`, the choice among them, and `fill`. Imports `vocabulary`, `address_space`, `writing`,
//! `allocation` and `handlers`.

pub(crate) mod writable;
pub(crate) mod spans;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod obstacle;
pub(crate) mod rendezvous;
pub(crate) mod poke;
pub(crate) mod fill;
