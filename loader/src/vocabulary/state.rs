//! The states of a module.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The states of a module, as Linux has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Its name is reserved and nothing more can be seen of it.
    Unformed,
    /// It is formed and relocated; the coming chain and `init` are under way.
    Coming,
    /// `init` has returned.
    Live,
    /// It is on its way out.
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
