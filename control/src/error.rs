//! Why a request was refused: its kind for programs, a sentence for people, and what else is known.

use std::fmt;
use std::io;

use modload::{
    BadPattern, LoadError, Occupant, Occupies, PatchError, ReadError, SetParamError, SymbolError, TraceError,
    UnloadError, sentence,
};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::details::load_details;
use crate::protocol::{MAX_CLIENTS, MAX_DESCRIPTORS, OPS, VERSION};
use crate::wire::WireError;

/// Why a request, or a client, was refused.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    #[error("user {uid} may not operate this host: it serves its own user and root")]
    NotPermitted { uid: u32 },
    #[error("there are {MAX_CLIENTS} clients already, and no more are served at once")]
    TooManyClients,
    #[error("the server is stopping")]
    Stopping,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the request is no JSON object: {0}")]
    Malformed(String),
    #[error("a request has an id, an integer from 0")]
    NoId,
    #[error("the client speaks version {0} of the protocol, and the server {VERSION}")]
    Version(Value),
    #[error("\"{}\" is none of the requests {}", .0.escape_debug(), OPS.join(", "))]
    UnknownOp(String),
    #[error("the request is not as it should be: {0}")]
    BadRequest(String),
    #[error("{given} descriptors came with the request, and {wanted} belong to it")]
    Descriptors { given: usize, wanted: usize },
    #[error("{}: {why}", .file.escape_debug())]
    NotAFile { file: String, why: NotAFile },
    #[error("{}: {source}", .file.escape_debug())]
    Read { file: String, source: ReadError },
    #[error("{}: {source}", .file.escape_debug())]
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
    #[error("the server panicked over this request, and goes on")]
    Internal,
}

/// What a descriptor is instead of a regular file that is open for reading.
#[derive(Debug)]
pub(crate) enum NotAFile {
    Special,
    NotOpenForReading,
    Unknown(io::Error),
}

impl fmt::Display for NotAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotAFile::Special => f.write_str("its descriptor is not that of a regular file"),
            NotAFile::NotOpenForReading => f.write_str("its descriptor is not open for reading"),
            NotAFile::Unknown(error) => write!(f, "its descriptor cannot be looked at: {error}"),
        }
    }
}

impl Refusal {
    /// Its name for programs: `docs/protocol.md` lists them.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Refusal::NotPermitted { .. } => "not_permitted",
            Refusal::TooManyClients => "too_many_clients",
            Refusal::Stopping => "stopping",
            Refusal::Wire(error) => error.kind(),
            Refusal::Malformed(_) => "malformed",
            Refusal::NoId => "no_id",
            Refusal::Version(_) => "version",
            Refusal::UnknownOp(_) => "unknown_op",
            Refusal::BadRequest(_) => "bad_request",
            Refusal::Descriptors { .. } => "descriptors",
            Refusal::NotAFile { .. } | Refusal::Read { .. } => "file",
            Refusal::Load { .. } => "load",
            Refusal::Unload(UnloadError::NotFound(_)) | Refusal::NoModule(_) => "no_module",
            Refusal::Unload(UnloadError::InUse { .. }) => "in_use",
            Refusal::Unload(UnloadError::Occupied { .. } | UnloadError::NotSeen { .. }) => "occupied",
            Refusal::Unload(UnloadError::ForceRefused(_)) => "force_refused",
            Refusal::Unload(UnloadError::NotLive { .. }) | Refusal::Param(SetParamError::NotLive { .. }) => "not_live",
            // A later version may have other reasons for which a module stays.
            Refusal::Unload(_) => "in_use",
            Refusal::NoSymbol(_) | Refusal::Symbol(SymbolError::NotFound { .. }) => "no_symbol",
            Refusal::Symbol(_) => "call",
            Refusal::Param(_) => "param",
            Refusal::Pattern(_) => "pattern",
            Refusal::Trace(_) => "trace",
            Refusal::Patch(PatchError::Unknown(_)) => "no_patch",
            Refusal::Patch(_) => "patch",
            Refusal::Internal => "internal",
        }
    }

    /// The object that stands under `error`.
    pub(crate) fn data(&self) -> Value {
        let mut data = Map::new();
        match self {
            Refusal::Load { file, source } => {
                data.insert("file".into(), file.as_str().into());
                data.append(&mut load_details(source));
            }
            Refusal::NotAFile { file, .. } | Refusal::Read { file, .. } => {
                data.insert("file".into(), file.as_str().into());
            }
            Refusal::Unload(UnloadError::InUse { module, by, references }) => {
                data.insert("module".into(), module.as_str().into());
                data.insert("used_by".into(), json!(by));
                data.insert("references".into(), json!(references));
            }
            Refusal::Unload(UnloadError::Occupied { module, threads }) => {
                data.insert("module".into(), module.as_str().into());
                data.insert("threads".into(), occupants(threads));
            }
            Refusal::Descriptors { given, wanted } => {
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

/// Threads that are in a module's code, or may be.
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
}
