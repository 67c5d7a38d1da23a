//! What went wrong, in one sentence or as data.

use std::io;
use std::path::{Path, PathBuf};

use modload::{ArenaError, CatalogError, Error, LoadError, ReadError, SymbolError, UnloadError};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::args::Format;

/// Why the command failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{}: {source}", shown(.file))]
    Read { file: PathBuf, source: ReadError },
    #[error(transparent)]
    Host(#[from] ArenaError),
    #[error("{}: {source}", shown(.file))]
    Load { file: PathBuf, source: LoadError },
    #[error("{}: {source}", shown(.file))]
    Inspect { file: PathBuf, source: Error },
    #[error("{}: it has no function \"{}\"", shown(.file), .function.escape_debug())]
    NoFunction { file: PathBuf, function: String },
    #[error("no loaded module has a symbol \"{}\"", .0.escape_debug())]
    NoSymbol(String),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Symbol(#[from] SymbolError),
    #[error(transparent)]
    Unload(#[from] UnloadError),
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Writes it to the standard error stream.
    pub(crate) fn report(&self, format: Format) {
        // Whoever closed our output does not want to read about it.
        if matches!(self, Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        match format {
            Format::Text => anstream::eprintln!("{}: {}", command(), self.sentence()),
            Format::Json => anstream::eprintln!("{}", json!({ "error": self.data() })),
        }
    }

    /// The whole chain of causes in one line.
    fn sentence(&self) -> String {
        let mut sentence = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            if !sentence.contains(&text) {
                sentence.push_str(": ");
                sentence.push_str(&text);
            }
            cause = error.source();
        }
        sentence
    }

    fn data(&self) -> Value {
        let mut data = Map::new();
        data.insert("message".into(), self.sentence().into());
        if let Failure::Read { file, .. }
        | Failure::Load { file, .. }
        | Failure::Inspect { file, .. }
        | Failure::NoFunction { file, .. } = self
        {
            data.insert("file".into(), file.display().to_string().into());
        }
        if let Failure::Inspect { source, .. } = self {
            details(source, &mut data);
        }
        if let Failure::Load { source, .. } = self {
            data.insert("module".into(), source.module.clone().into());
            data.insert("stage".into(), source.stage.name().into());
            data.insert("errno".into(), source.error.errno().into());
            details(&source.error, &mut data);
        }
        data.into()
    }
}

/// The command's own name.
pub(crate) fn command() -> String {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| "modload".into())
}

/// A path fit for a terminal.
fn shown(file: &Path) -> String {
    file.to_string_lossy()
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// What an error knows besides its sentence.
fn details(error: &Error, data: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| drop(data.insert(key.into(), value));
    match error {
        Error::Malformed { table, index, field, value, problem } => {
            put("table", (*table).into());
            put("index", (*index).into());
            put("field", (*field).into());
            put("value", (*value).into());
            put("problem", (*problem).into());
        }
        Error::Unsupported { what, name, why } => {
            put(what, name.clone().into());
            put("problem", (*why).into());
        }
        Error::Unresolved(symbols) => {
            put("unresolved", json!(symbols));
        }
        Error::Relocation { place, symbol, error, .. } => {
            put("section", place.split('+').next().unwrap_or_default().into());
            put("place", place.clone().into());
            put("symbol", symbol.clone().into());
            put("problem", error.to_string().into());
        }
        Error::BadRecord { section, record, problem } => {
            put("section", (*section).into());
            put("record", (*record).into());
            put("problem", (*problem).into());
        }
        Error::GplOnly { symbol, owner, .. }
        | Error::Namespace { symbol, owner, .. }
        | Error::DuplicateExport { symbol, owner } => {
            put("symbol", symbol.clone().into());
            put("owner", owner.clone().into());
        }
        Error::Version { symbol, owner, exported, built_against } => {
            put("symbol", symbol.clone().into());
            put("owner", owner.clone().into());
            put("exported", (*exported).into());
            put("built_against", (*built_against).into());
        }
        Error::Vermagic { found, expected } => {
            put("vermagic", found.clone().into());
            put("expected", expected.clone().into());
        }
        Error::InObject { object, error } => {
            put("object", object.clone().into());
            details(error, data);
        }
        Error::DefinedTwice { symbol, first, second } => {
            put("symbol", symbol.clone().into());
            put("objects", json!([first, second]));
        }
        Error::Refused { subscriber, reason, .. } => {
            put("subscriber", subscriber.clone().into());
            put("problem", reason.clone().into());
        }
        Error::Param { name, source } => {
            put("parameter", name.clone().into());
            put("problem", source.to_string().into());
        }
        Error::Init(result) => {
            put("result", (*result).into());
        }
        _ => {}
    }
}
