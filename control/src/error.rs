//! The reasons why the server refuses a request: a kind for programs, a sentence for people, and more facts.

use std::fmt;
use std::io;

use modload::error::{SetParamError, sentence};
use modload::file::ReadError;
use modload::module::{Occupant, Occupies};
use modload::patch::PatchError;
use modload::trace::{BadPattern, TraceError};
use modload::{LoadError, SymbolError, UnloadError};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::details::load_details;
use crate::protocol::{MAX_CLIENTS, MAX_DESCRIPTORS, OPS, VERSION};
use crate::wire::WireError;

/// Why the server has refused a request or a client.
#[derive(Debug, Error)]
pub(crate) enum RequestRefusal {
    #[error("user {uid} may not operate this host: it serves its own user and root")]
    NotPermitted { uid: u32 },
    #[error("there are {MAX_CLIENTS} clients already, and no more are served at once")]
    TooManyClients,
    #[error("the server is stopping and takes no more requests")]
    Stopping,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the request is no JSON object: {0}")]
    Malformed(String),
    #[error("a request needs an \"id\", an integer from 0")]
    NoId,
    #[error("the client speaks version {0} of the protocol, and the server {VERSION}")]
    Version(Value),
    #[error("\"{}\" is none of the requests {}", .0.escape_debug(), OPS.join(", "))]
    UnknownOp(String),
    #[error("the fields of the request are wrong: {0}")]
    BadRequest(String),
    #[error("{given} descriptors came with the request, but it needs {wanted}")]
    Descriptors { given: usize, wanted: usize },
    #[error("{}: {why}", .file.escape_debug())]
    NotAFile { file: String, why: NotAFile },
    #[error("{}", .file.escape_debug())]
    Read { file: String, source: ReadError },
    #[error("{}", .file.escape_debug())]
    Load { file: String, source: LoadError },
    #[error(transparent)]
    Unload(#[from] UnloadError),
    #[error("{}: no module of this name is loaded", .0.escape_debug())]
    NoModule(String),
    #[error("no loaded module has a symbol \"{}\"", .0.escape_debug())]
    NoSymbol(String),
    #[error(transparent)]
    Symbol(#[from] SymbolError),
    #[error(transparent)]
    Param(#[from] SetParamError),
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Patch(#[from] PatchError),
    #[error("the server panicked while it processed this request; it still serves other requests")]
    Internal,
}

/// Why a descriptor is not a regular file that is open for reading.
#[derive(Debug)]
pub(crate) enum NotAFile {
    Special,
    NotOpenForReading,
    Unknown(io::Error),
}

impl fmt::Display for NotAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotAFile::Special => f.write_str("its descriptor is not a regular file"),
            NotAFile::NotOpenForReading => f.write_str("its descriptor is not open for reading"),
            NotAFile::Unknown(error) => write!(f, "its descriptor cannot be examined: {error}"),
        }
    }
}

impl RequestRefusal {
    /// Returns the kind of the refusal, for programs. `docs/protocol.md` lists all kinds.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            RequestRefusal::NotPermitted { .. } => "not_permitted",
            RequestRefusal::TooManyClients => "too_many_clients",
            RequestRefusal::Stopping => "stopping",
            RequestRefusal::Wire(error) => error.kind(),
            RequestRefusal::Malformed(_) => "malformed",
            RequestRefusal::NoId => "no_id",
            RequestRefusal::Version(_) => "version",
            RequestRefusal::UnknownOp(_) => "unknown_op",
            RequestRefusal::BadRequest(_) => "bad_request",
            RequestRefusal::Descriptors { .. } => "descriptors",
            RequestRefusal::NotAFile { .. } | RequestRefusal::Read { .. } => "file",
            RequestRefusal::Load { .. } => "load",
            RequestRefusal::Unload(UnloadError::NotFound(_)) | RequestRefusal::NoModule(_) => "no_module",
            RequestRefusal::Unload(UnloadError::InUse { .. }) => "in_use",
            RequestRefusal::Unload(UnloadError::Occupied { .. } | UnloadError::NotSeen { .. }) => "occupied",
            RequestRefusal::Unload(UnloadError::ForceRefused(_)) => "force_refused",
            RequestRefusal::Unload(UnloadError::NotLive { .. })
            | RequestRefusal::Param(SetParamError::NotLive { .. }) => "not_live",
            // A later version may have other reasons for which a module stays.
            RequestRefusal::Unload(_) => "in_use",
            RequestRefusal::NoSymbol(_) | RequestRefusal::Symbol(SymbolError::NotFound { .. }) => "no_symbol",
            RequestRefusal::Symbol(_) => "call",
            RequestRefusal::Param(_) => "param",
            RequestRefusal::Pattern(_) => "pattern",
            RequestRefusal::Trace(_) => "trace",
            RequestRefusal::Patch(PatchError::Unknown(_)) => "no_patch",
            RequestRefusal::Patch(_) => "patch",
            RequestRefusal::Internal => "internal",
        }
    }

    /// Returns the value of the field `error` in the answer.
    pub(crate) fn data(&self) -> Value {
        let mut data = Map::new();
        match self {
            RequestRefusal::Load { file, source } => {
                data.insert("file".into(), file.as_str().into());
                data.append(&mut load_details(source));
            }
            RequestRefusal::NotAFile { file, .. } | RequestRefusal::Read { file, .. } => {
                data.insert("file".into(), file.as_str().into());
            }
            RequestRefusal::Unload(UnloadError::InUse { module, by, references }) => {
                data.insert("module".into(), module.as_str().into());
                data.insert("used_by".into(), json!(by));
                data.insert("references".into(), json!(references));
            }
            RequestRefusal::Unload(UnloadError::Occupied { module, threads }) => {
                data.insert("module".into(), module.as_str().into());
                data.insert("threads".into(), occupants(threads));
            }
            RequestRefusal::Descriptors { given, wanted } => {
                data.insert("given".into(), json!(given));
                data.insert("wanted".into(), json!(wanted));
                data.insert("limit".into(), MAX_DESCRIPTORS.into());
            }
            _ => {}
        }
        data.insert("kind".into(), self.kind().into());
        data.insert("message".into(), sentence(self).into());
        data.into()
    }
}

/// Returns the threads that are, or may be, in a module's code.
pub(crate) fn occupants(threads: &[Occupant]) -> Value {
    let one = |occupant: &Occupant| {
        let (key, value) = match &occupant.why {
            Occupies::Inside(frame) => ("frame", frame.clone()),
            Occupies::Unknown(error) => ("unknown", error.to_string()),
            other => ("unknown", format!("{other:?}")),
        };
        json!({ "thread": occupant.thread, "name": occupant.name, key: value })
    };
    threads.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_kind_is_documented() {
        let sources = [include_str!("error.rs"), include_str!("wire.rs")].concat();
        let kinds: Vec<_> = sources
            .lines()
            .filter_map(|line| line.split(" => \"").nth(1)?.strip_suffix("\","))
            .filter(|kind| !kind.is_empty())
            .collect();
        assert!(kinds.len() > 20, "only {kinds:?}");
        let document = include_str!("../../docs/protocol.md");
        for kind in kinds {
            assert!(document.contains(&format!("`{kind}`")), "{kind}");
        }
    }

    #[test]
    fn every_op_is_documented() {
        let refused = serde_json::from_str::<crate::protocol::Request>(r#"{"op":"?"}"#).unwrap_err().to_string();
        // The refusal lists all ops: unknown variant `?`, expected one of `ping`, `list`, ..
        let ops: Vec<&str> = refused.split('`').skip(3).step_by(2).collect();
        assert!(ops.len() >= 13 && ops.contains(&"set_param"), "{refused}");
        let document = include_str!("../../docs/protocol.md");
        for op in ops {
            assert!(document.contains(&format!("\n| `{op}` | ")), "{op}");
        }
    }
}
