//! Why the registry or a subscriber refuses a module.

use std::fmt;

use thiserror::Error;

use crate::vocabulary::sentence::{Joined, sentence};

/// Why the registry or a subscriber refuses a module.
#[derive(Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// A module of this name is LIVE (EEXIST).
    #[error("a module of this name is already loaded")]
    Exists,
    /// A module of this name is being unloaded, or another load of this name has just failed (EBUSY).
    #[error("a module of this name is being unloaded, or has just failed to load")]
    Busy,
    /// To wait would be to wait for oneself.
    #[error("waiting would never end: {}", Joined(.0, ", which waits for "))]
    Cycle(Vec<String>),
    /// A subscriber of the coming chain refused the module.
    #[error("refused by {subscriber}: {reason}")]
    Refused {
        /// The subscriber.
        subscriber: String,
        /// The reason.
        reason: String,
        /// The error number that a C subscriber has returned.
        errno: Option<i32>,
    },
}

impl fmt::Debug for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

impl RegistryError {
    /// Returns the error number that Linux's `init_module(2)` gives for this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            RegistryError::Exists => libc::EEXIST,
            RegistryError::Busy => libc::EBUSY,
            RegistryError::Cycle(_) => libc::EDEADLK,
            RegistryError::Refused { errno, .. } => errno.unwrap_or(libc::EPERM),
        }
    }
}
