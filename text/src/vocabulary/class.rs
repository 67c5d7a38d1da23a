//! The classes of memory: each class has an access and a stripe of the arena.

use std::fmt;

/// The purpose of memory. Each class is one stripe of the arena.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Code: readable and executable.
    Text,
    /// Constants: readable.
    ReadOnly,
    /// Variables: readable and writable.
    Data,
    /// Variables until `init` has returned, constants from then on.
    RoAfterInit,
}

impl Class {
    /// All classes, in the order of their stripes.
    pub const ALL: [Class; 4] = [Class::Text, Class::ReadOnly, Class::Data, Class::RoAfterInit];

    /// Returns the stripe's part of the arena, in 64ths.
    pub(crate) fn share(self) -> u64 {
        match self {
            Class::Text => 16,
            Class::ReadOnly => 15,
            Class::Data => 29,
            Class::RoAfterInit => 4,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Text => "text",
            Class::ReadOnly => "read-only data",
            Class::Data => "data",
            Class::RoAfterInit => "ro_after_init data",
        })
    }
}
