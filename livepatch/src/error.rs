//! Why a patch is refused.

use modload_edit::Addr;
use modload_ftrace::TraceError;
use modload_loader::sentence;
use thiserror::Error;

use crate::structs::StructError;
use crate::stub::StubError;
use crate::table::{Log, note};

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
    /// The records of a module are not what they must be.
    #[error(transparent)]
    Struct(#[from] StructError),
    /// The module that enables a patch is going.
    #[error("module '{0}' is going")]
    Going(String),
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
    /// A function can be replaced once by one patch.
    #[error(
        "the patch replaces a function of object '{object}' twice, as '{first}' and as '{second}': leave one of its records out"
    )]
    FunctionTwice {
        /// The object.
        object: String,
        /// The name of its first record.
        first: String,
        /// The name of its second record.
        second: String,
    },
    /// The functions of an object belong into one record.
    #[error("the patch has two records for object '{object}': make them one")]
    ObjectTwice {
        /// The object.
        object: String,
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
    /// Its module waits for an object that the patch does not have.
    #[error("the module has relocations for object '{object}', which the patch does not patch")]
    NoObject {
        /// The object.
        object: String,
    },
    /// What replaces a function is in a module that waits for objects, and the patch does not hold it.
    #[error("functions of module '{module}' wait for their objects: it must be the one that the patch holds")]
    NotHeld {
        /// The module.
        module: String,
    },
    /// A function of one object waits for another: it would run before that is there.
    #[error("what replaces '{function}' of object '{object}' has relocations for object '{awaited}'")]
    OtherObject {
        /// The function that is replaced.
        function: String,
        /// Its object.
        object: String,
        /// The object that the relocations wait for.
        awaited: String,
    },
    /// What was written for an object that has gone could not be taken back.
    #[error("somebody is still in what patch '{patch}' had relocated for object '{object}' when it was there before")]
    Stale {
        /// The patch.
        patch: String,
        /// The object.
        object: String,
    },
    /// What waits for an object cannot be written.
    #[error("patch '{patch}' cannot be relocated for object '{object}'")]
    Slice {
        /// The patch.
        patch: String,
        /// The object.
        object: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Sites could not be switched.
    #[error(transparent)]
    Trace(Box<TraceError>),
    /// No stubs can be had.
    #[error(transparent)]
    Stub(Box<StubError>),
    /// Threads that go over at checkpoints alone look at their stacks themselves, for so many ranges of addresses at most.
    #[error(
        "the patch changes too many functions for checkpoints alone: {ranges} ranges of addresses, and {most} at most"
    )]
    TooMany {
        /// How many ranges its functions are, with what belongs to transitions.
        ranges: usize,
        /// How many there can be.
        most: usize,
    },
    /// Their numbers are used up.
    #[error("there were two thousand million transitions at checkpoints alone in this process: there can be no more")]
    Exhausted,
    /// Threads could not be held, or listed.
    #[error("threads cannot be held")]
    Threads(#[source] Box<modload_threads::Error>),
    /// Stacks cannot be walked.
    #[error("stacks cannot be walked")]
    NoRows(#[from] modload_threads::frames::NoFinder),
}

impl PatchError {
    /// The error number that Linux's `klp_enable_patch` would give for this, or the nearest there is.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const ENOENT: i32 = 2;
        const EAGAIN: i32 = 11;
        const ENOMEM: i32 = 12;
        const EBUSY: i32 = 16;
        const EEXIST: i32 = 17;
        const ENODEV: i32 = 19;
        const EINVAL: i32 = 22;
        const EDEADLK: i32 = 35;
        match self {
            PatchError::Callback { errno, .. } => *errno,
            PatchError::Enabled(_) | PatchError::FunctionTwice { .. } | PatchError::ObjectTwice { .. } => EEXIST,
            PatchError::InTransition(_) => EBUSY,
            PatchError::Nested => EDEADLK,
            PatchError::NoExtent { .. } | PatchError::Unknown(_) => ENOENT,
            PatchError::Function { source, .. } | PatchError::Trace(source) => match **source {
                TraceError::Redirected { .. } => EBUSY,
                TraceError::NoSite { .. } => EINVAL,
                _ => EAGAIN,
            },
            PatchError::Stub(_) | PatchError::TooMany { .. } | PatchError::Exhausted => ENOMEM,
            PatchError::Threads(_) | PatchError::Stale { .. } => EAGAIN,
            PatchError::NoRows(_) | PatchError::Going(_) => ENODEV,
            _ => EINVAL,
        }
    }

    /// Notes what Linux notes when a function cannot be found.
    pub(crate) fn note(&self, log: &Log) {
        match self {
            PatchError::NotFound { symbol, .. } => note(log, &format!("symbol '{symbol}' not found in symbol table")),
            PatchError::Position { object, symbol, position: 0, .. } => {
                note(log, &format!("unresolvable ambiguity for symbol '{symbol}' in object '{object}'"));
            }
            PatchError::Position { object, symbol, position, .. } => {
                note(
                    log,
                    &format!("symbol position '{position}' for symbol '{symbol}' in object '{object}' not found"),
                );
            }
            PatchError::Function { symbol, source, .. } => {
                note(log, &format!("failed to find location for function '{symbol}': {source}"));
            }
            PatchError::NoObject { .. }
            | PatchError::OtherObject { .. }
            | PatchError::Stale { .. }
            | PatchError::Slice { .. } => note(log, &sentence(self)),
            _ => {}
        }
    }
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
