//! The states of a module.

use std::fmt;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// The states of a module, as Linux has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "UPPERCASE"))]
pub enum State {
    /// The name is reserved and nothing else of the module is visible.
    Unformed,
    /// The module is formed and relocated; the coming chain and `init` are in progress.
    Coming,
    /// `init` has returned.
    Live,
    /// The module is being unloaded.
    Going,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Unformed => "UNFORMED",
            State::Coming => "COMING",
            State::Live => "LIVE",
            State::Going => "GOING",
        })
    }
}
