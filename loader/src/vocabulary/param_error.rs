//! Why a parameter does not accept a value.

use thiserror::Error;

/// Why a parameter does not accept a value.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ParamError {
    /// The value is not of the type.
    #[error("\"{value}\" is not {expected}")]
    Invalid {
        /// The given value, escaped.
        value: String,
        /// A description of valid values.
        expected: String,
    },
    /// The number does not fit.
    #[error("{value} does not fit {kind}")]
    Range {
        /// The given value.
        value: String,
        /// The type.
        kind: &'static str,
    },
    /// Only a bool may be given without value.
    #[error("it needs a value: NAME=VALUE")]
    NeedsValue,
    /// The string is too long.
    #[error("a string of {len} bytes, and there is room for {max}")]
    TooLong {
        /// Length of the string.
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
    /// The module's record points outside of the module's own variables.
    #[error("its variable is not in the module's data")]
    Outside,
}
