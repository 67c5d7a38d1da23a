//! The reasons for which a patch is refused.

use modload_edit::Addr;
use modload_ftrace::TraceError;
use modload_loader::sentence;
use thiserror::Error;

use crate::log::{Log, note};
use crate::structs::StructError;
use crate::stub::StubError;

/// An error: a patch was not enabled, disabled or reversed. Nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PatchError {
    /// This host has no patch of this name.
    #[error("there is no patch '{0}'")]
    Unknown(String),
    /// A patch of this name exists already.
    #[error("patch '{0}' is enabled already")]
    Enabled(String),
    /// The patch is disabled and cannot be enabled again: its module must be loaded anew.
    #[error("patch '{0}' is disabled")]
    Disabled(String),
    /// Another transition is under way. Only one transition can be under way at a time.
    #[error("patch '{0}' is in transition")]
    InTransition(String),
    /// No transition is under way, so there is none to reverse or to force.
    #[error("no patch is in transition")]
    NoTransition,
    /// Live patching was called from within a callback of live patching.
    #[error("a callback of live patching has called live patching: call it after the callback has returned")]
    Nested,
    /// The patch has no objects.
    #[error("the patch has no objects: a patch needs at least one")]
    Empty,
    /// The records of a module are not valid.
    #[error(transparent)]
    Struct(#[from] StructError),
    /// The module that enables the patch is being unloaded.
    #[error("module '{0}' is being unloaded, so its patch cannot be enabled: load the module again")]
    Going(String),
    /// The object has no function of this name.
    #[error("symbol '{symbol}' not found in object '{object}'")]
    NotFound {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
    },
    /// The object has several functions of this name, or fewer than the position says.
    #[error(
        "symbol '{symbol}' occurs {count} times in object '{object}', and position {position} selects none of them: use a position from 1 to {count}"
    )]
    Position {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
        /// The value of `old_sympos`. 0 means that there is exactly one function of this name.
        position: u64,
        /// The number of functions of this name.
        count: usize,
    },
    /// A patch replaces one function twice. A patch may replace a function only once.
    #[error(
        "the patch replaces a function of object '{object}' twice, as '{first}' and as '{second}': leave one of its records out"
    )]
    FunctionTwice {
        /// The object.
        object: String,
        /// The name in the function's first record.
        first: String,
        /// The name in the function's second record.
        second: String,
    },
    /// A patch has two records for one object. All functions of an object belong into one record.
    #[error("the patch has two records for object '{object}': merge them into one")]
    ObjectTwice {
        /// The object.
        object: String,
    },
    /// The end of a function is not known, so no stack shows whether a thread is inside the function.
    #[error(
        "the end of the function at {at} is not known: no symbol has its size, and no call frame information covers it; compile it with -fasynchronous-unwind-tables"
    )]
    NoExtent {
        /// The function's entry.
        at: Addr,
    },
    /// A function cannot be patched.
    #[error("function '{symbol}' of object '{object}' cannot be patched")]
    Function {
        /// The object.
        object: String,
        /// The function.
        symbol: String,
        /// The reason.
        source: Box<TraceError>,
    },
    /// A `pre_patch` callback returned an error.
    #[error("pre-patch callback failed for object '{object}': it returned {errno}")]
    Callback {
        /// The object.
        object: String,
        /// The error number that the callback returned.
        errno: i32,
    },
    /// The patch does not know a state that an earlier patch has left, or knows only an older version of the state.
    #[error(
        "patch '{patch}' does not know all states of the enabled patches, or knows only older versions: add the states to the patch"
    )]
    Incompatible {
        /// The patch.
        patch: String,
    },
    /// The patch's module has relocations for an object that the patch does not patch.
    #[error(
        "the module has relocations for object '{object}', which the patch does not patch: add the object to the patch"
    )]
    NoObject {
        /// The object.
        object: String,
    },
    /// A replacement function is in a module whose relocations wait for objects, and the patch does not hold that
    /// module.
    #[error(
        "module '{module}' has functions whose relocations wait for objects, so the patch must hold this module: enable the patch with it"
    )]
    NotHeld {
        /// The module.
        module: String,
    },
    /// A replacement function for one object has relocations for another object: the function could run before the
    /// other object is loaded.
    #[error(
        "the replacement of '{function}' in object '{object}' has relocations for object '{awaited}': it may refer only to its own object"
    )]
    OtherObject {
        /// The function that is replaced.
        function: String,
        /// The object of the replaced function.
        object: String,
        /// The object that the relocations wait for.
        awaited: String,
    },
    /// The relocations for an earlier load of the object could not be undone.
    #[error(
        "patch '{patch}' still has relocations for an earlier load of object '{object}', because a thread is inside the relocated code: load the object again when the thread has left"
    )]
    Stale {
        /// The patch.
        patch: String,
        /// The object.
        object: String,
    },
    /// The relocations that wait for the object cannot be applied.
    #[error("patch '{patch}' cannot be relocated for object '{object}'")]
    Slice {
        /// The patch.
        patch: String,
        /// The object.
        object: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Call sites could not be switched.
    #[error(transparent)]
    Trace(Box<TraceError>),
    /// No stubs could be allocated.
    #[error(transparent)]
    Stub(Box<StubError>),
    /// The patch changes too many functions for a checkpoint-only transition. Threads walk their own stacks there, and
    /// compare them with a limited number of address ranges.
    #[error(
        "the patch changes too many functions for a checkpoint-only transition: {ranges} address ranges, and the limit is {most}; split the patch"
    )]
    TooMany {
        /// The number of ranges of the patch's functions, together with the ranges that transitions need.
        ranges: usize,
        /// The largest number of ranges.
        most: usize,
    },
    /// The numbers of checkpoint-only transitions are used up.
    #[error(
        "the numbers of checkpoint-only transitions are used up: a process can have about 2147 million of them; restart it"
    )]
    Exhausted,
    /// Threads could not be held or listed.
    #[error("threads cannot be held")]
    Threads(#[source] Box<modload_threads::Error>),
    /// Stacks cannot be walked.
    #[error("stacks cannot be walked")]
    NoRows(#[from] modload_threads::frames::NoFinder),
}

impl PatchError {
    /// Returns the error number that Linux's `klp_enable_patch` would return for this error, or the nearest one.
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

    /// Logs the line that Linux logs when a function cannot be found.
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
