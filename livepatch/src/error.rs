//! Why a patch is refused.

use modload_edit::Addr;
use modload_ftrace::TraceError;
use thiserror::Error;

use crate::stub::StubError;

/// A patch was not enabled, disabled or reversed. All is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PatchError {
    /// There is no such patch in this host.
    #[error("there is no patch '{0}'")]
    Unknown(String),
    /// A patch of this name is there.
    #[error("patch '{0}' is enabled already")]
    Enabled(String),
    /// It is disabled, and cannot be enabled again: load it anew.
    #[error("patch '{0}' is disabled")]
    Disabled(String),
    /// One transition at a time.
    #[error("patch '{0}' is in transition")]
    InTransition(String),
    /// No transition is under way, so that none can be reversed or forced.
    #[error("no patch is in transition")]
    NoTransition,
    /// Who is called by live patching calls it.
    #[error("live patching is used from within one of its callbacks")]
    Nested,
    /// It has no objects.
    #[error("the patch has no objects")]
    Empty,
    /// An object has no functions.
    #[error("object '{object}' has no functions")]
    NoFuncs {
        /// The object.
        object: String,
    },
    /// There is no function of this name.
    #[error("symbol '{symbol}' not found in object '{object}'")]
    NotFound {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
    },
    /// There are several of this name, or not as many as the position says.
    #[error("symbol '{symbol}' is there {count} times in object '{object}': position {position} is none of them")]
    Position {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
        /// What `old_sympos` says; 0: there is one.
        position: u64,
        /// How many there are.
        count: usize,
    },
    /// Where a function ends is not known, so that nobody can see who is in it.
    #[error("where the function at {at} ends is said neither by a symbol nor by call frame information")]
    NoExtent {
        /// Its entry.
        at: Addr,
    },
    /// A function cannot be patched.
    #[error("function '{symbol}' of object '{object}' cannot be patched")]
    Function {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
        /// Why not.
        source: Box<TraceError>,
    },
    /// A callback has refused.
    #[error("pre-patch callback failed for object '{object}': it returned {errno}")]
    Callback {
        /// The object.
        object: String,
        /// What it returned.
        errno: i32,
    },
    /// It does not know a state that an earlier patch has left, or an older version of it.
    #[error("patch '{patch}' is not compatible with the states of the patches that are there")]
    Incompatible {
        /// The patch.
        patch: String,
    },
    /// Sites could not be switched.
    #[error(transparent)]
    Trace(Box<TraceError>),
    /// No stubs can be had.
    #[error(transparent)]
    Stub(Box<StubError>),
    /// Threads could not be held.
    #[error("threads cannot be held")]
    Threads(#[source] Box<modload_threads::Error>),
    /// Stacks cannot be walked.
    #[error("stacks cannot be walked")]
    NoRows(#[from] modload_threads::frames::NoFinder),
}

impl From<TraceError> for PatchError {
    fn from(error: TraceError) -> PatchError {
        PatchError::Trace(Box::new(error))
    }
}

impl From<StubError> for PatchError {
    fn from(error: StubError) -> PatchError {
        PatchError::Stub(Box::new(error))
    }
}

impl From<modload_threads::Error> for PatchError {
    fn from(error: modload_threads::Error) -> PatchError {
        PatchError::Threads(Box::new(error))
    }
}
