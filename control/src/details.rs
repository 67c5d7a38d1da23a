//! The loader's errors as data, in the same form on the control socket and in `--format json`.

use modload::{Error, LoadError};
use serde_json::{Map, Value, json};

/// Returns the facts about a refused load: module, stage and errno, and the facts about its cause.
#[must_use]
pub fn load_details(error: &LoadError) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("module".into(), error.module.clone().into());
    data.insert("stage".into(), error.stage.name().into());
    data.insert("errno".into(), error.error.errno().into());
    error_details(&error.error, &mut data);
    data
}

/// Adds the facts about an error, by name: section, place, symbol, and the like.
pub fn error_details(error: &Error, data: &mut Map<String, Value>) {
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
            error_details(error, data);
        }
        Error::DefinedTwice { symbol, first, second } => {
            put("symbol", symbol.clone().into());
            put("objects", json!([first, second]));
        }
        Error::NoAddress { section, problem } => {
            put("section", section.clone().into());
            put("problem", (*problem).into());
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
