//! Writing to memory whose protection forbids it.
//!
//! Owns the text lock, through which alone published memory is written, the synchronisation of cores, and the list of
//! the host's ranges that may be written. Imports `vocabulary`.

pub(crate) mod text_lock;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod cores;
pub(crate) mod int3;
pub(crate) mod ranges;
pub(crate) mod registered;
