//! Why a parameter's value cannot be taken.

use thiserror::Error;

/// Why a value cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ParamError {
    /// The value is not of the type.
    #[error("\"{value}\" is not {expected}")]
    Invalid {
        /// What was given, escaped.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// The number does not fit.
    #[error("{value} does not fit {kind}")]
    Range {
        /// What was given.
        value: String,
        /// The type.
        kind: &'static str,
    },
    /// Only a bool may go without.
    #[error("it needs a value: NAME=VALUE")]
    NeedsValue,
    /// The string is too long.
    #[error("a string of {len} bytes, and there is room for {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The room, without the closing NUL.
        max: usize,
    },
    /// The array is too small.
    #[error("it takes at most {max} values")]
    TooMany {
        /// The room.
        max: u32,
    },
    /// The module's record points somewhere else than its own variables.
    #[error("its variable is not in the module's data")]
    Outside,
}
