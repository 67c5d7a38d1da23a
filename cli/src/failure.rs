//! The failures of the commands, as a sentence or as data.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use modload::error::ArenaError;
use modload::file::ReadError;
use modload::inspect::CatalogError;
use modload::{Error, LoadError, SymbolError, UnloadError};
use modload_control::{ClientError, ListenError, NoSocket, ServeError, error_details, load_details, sentence};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::args::Format;

/// Why the command failed.
#[derive(Debug, Error)]
pub(crate) enum CommandFailure {
    #[error("{}", shown(.file))]
    Read { file: PathBuf, source: ReadError },
    #[error(transparent)]
    Host(#[from] ArenaError),
    #[error("{}", shown(.file))]
    Load { file: PathBuf, source: LoadError },
    #[error("{}", shown(.file))]
    Inspect { file: PathBuf, source: Error },
    #[error("{}", shown(.file))]
    Link { file: PathBuf, source: modload::patch::link::PatchLinkError },
    #[error("{} is the input file: name another file with -o", shown(.0))]
    SameFile(PathBuf),
    #[error("{}: the file has no function \"{}\"", shown(.file), .function.escape_debug())]
    NoFunction { file: PathBuf, function: String },
    #[error("no loaded module has a symbol \"{}\"", .0.escape_debug())]
    NoSymbol(String),
    #[error(
        "{} is loaded and stays loaded, but has enabled no patch: a live patch calls klp_enable_patch() in its init",
        .0.escape_debug()
    )]
    NoPatch(String),
    #[error("{}:{line}: {problem}", shown(.file))]
    BadLine { file: PathBuf, line: usize, problem: String },
    #[error("{failed} of {of} modules could not be linked")]
    NotLinked { failed: usize, of: usize },
    #[error("{different} of {compared} sections differ")]
    Differs { different: usize, compared: usize },
    #[error(transparent)]
    Cpu(#[from] modload::error::OtherCpu),
    #[error(transparent)]
    Library(#[from] modload::error::LibraryError),
    #[error(transparent)]
    PerfMap(#[from] modload::error::PerfMapError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Symbol(#[from] SymbolError),
    #[error(transparent)]
    Unload(#[from] UnloadError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    NoSocket(#[from] NoSocket),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the descriptor of LISTEN_FDS: {0}")]
    Inherited(&'static str),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("stopped, but {}{}", sentences(.held), requests(*.unfinished))]
    Held { held: Vec<UnloadError>, unfinished: usize },
    #[error("signal handlers could not be installed")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Pattern(#[from] modload::trace::BadPattern),
    #[error(transparent)]
    Trace(#[from] modload::trace::TraceError),
    #[error(transparent)]
    Patch(#[from] modload::patch::PatchError),
    #[error("{}", shown(.file))]
    Out { file: PathBuf, source: io::Error },
    #[error("{refused} of {of} files cannot be loaded")]
    Unloadable { refused: usize, of: usize },
    #[error("the output could not be written")]
    Output(#[from] io::Error),
}

impl CommandFailure {
    /// Writes the failure to the standard error stream.
    pub(crate) fn report(&self, format: Format) {
        // The reader of the output has closed it, so a message has no use.
        if matches!(self, CommandFailure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        match format {
            Format::Text => tell(&sentence(self)),
            // If this write fails too, the exit status still tells.
            Format::Json => drop(writeln!(anstream::stderr(), "{}", json!({ "error": self.data() }))),
        }
    }

    fn data(&self) -> Value {
        let mut data = Map::new();
        data.insert("message".into(), sentence(self).into());
        if let CommandFailure::Read { file, .. }
        | CommandFailure::Load { file, .. }
        | CommandFailure::Inspect { file, .. }
        | CommandFailure::Link { file, .. }
        | CommandFailure::SameFile(file)
        | CommandFailure::Out { file, .. }
        | CommandFailure::NoFunction { file, .. } = self
        {
            data.insert("file".into(), file.display().to_string().into());
        }
        if let CommandFailure::Client(ClientError::Refused(refused)) = self {
            data.append(&mut refused.data.clone());
            data.insert("kind".into(), refused.kind.clone().into());
        }
        if let CommandFailure::Held { held, .. } = self {
            data.insert("held".into(), held.iter().map(|error| sentence(error)).collect());
        }
        if let CommandFailure::Inspect { source, .. } = self {
            error_details(source, &mut data);
        }
        if let CommandFailure::Load { source, .. } = self {
            data.append(&mut load_details(source));
        }
        data.into()
    }
}

/// Writes a line for people to the standard error stream.
pub(crate) fn tell(text: &str) {
    // If this write fails, the exit status still tells.
    let _ = writeln!(anstream::stderr(), "{}: {}", plain(&command()), plain(text));
}

/// Returns the name under which this command was started.
fn command() -> String {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "modload".into())
}

fn sentences(held: &[UnloadError]) -> String {
    held.iter().map(|error| sentence(error)).collect::<Vec<_>>().join("; ")
}

fn requests(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " (1 client's request did not end)".into(),
        count => format!(" ({count} clients' requests did not end)"),
    }
}

/// Escapes a path for a terminal.
pub(crate) fn shown(file: &Path) -> String {
    plain(&file.to_string_lossy())
}

/// Escapes text for a terminal, also text from a host, which may come from another user.
pub(crate) fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
