//! The loader's errors as data, in the same form on the control socket and in `--format json`.

use modload::error::{ObjectError, PrepareError, RegistryError};
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
        Error::Object(error) => object_details(error, data),
        Error::Prepare(error) => prepare_details(error, data),
        Error::Registry(error) => registry_details(error, data),
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
        Error::Init(result) => {
            put("result", (*result).into());
        }
        _ => {}
    }
}

fn object_details(error: &ObjectError, data: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| drop(data.insert(key.into(), value));
    match error {
        ObjectError::Malformed { table, index, field, value, problem } => {
            put("table", (*table).into());
            put("index", (*index).into());
            put("field", (*field).into());
            put("value", (*value).into());
            put("problem", (*problem).into());
        }
        ObjectError::Unsupported { what, name, why } => {
            put(what, name.clone().into());
            put("problem", (*why).into());
        }
        ObjectError::BadRecord { section, record, problem } => {
            put("section", (*section).into());
            put("record", (*record).into());
            put("problem", (*problem).into());
        }
        ObjectError::InObject { object, error } => {
            put("object", object.clone().into());
            object_details(error, data);
        }
        ObjectError::DefinedTwice { symbol, first, second } => {
            put("symbol", symbol.clone().into());
            put("objects", json!([first, second]));
        }
        _ => {}
    }
}

fn prepare_details(error: &PrepareError, data: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| drop(data.insert(key.into(), value));
    match error {
        PrepareError::Object(error) => object_details(error, data),
        PrepareError::Unresolved(symbols) => {
            put("unresolved", json!(symbols));
        }
        PrepareError::Relocation { place, symbol, error, .. } => {
            put("section", place.split('+').next().unwrap_or_default().into());
            put("place", place.clone().into());
            put("symbol", symbol.clone().into());
            put("problem", error.to_string().into());
        }
        PrepareError::NoAddress { section, problem } => {
            put("section", section.clone().into());
            put("problem", (*problem).into());
        }
        PrepareError::Param { name, source } => {
            put("parameter", name.clone().into());
            put("problem", source.to_string().into());
        }
        _ => {}
    }
}

fn registry_details(error: &RegistryError, data: &mut Map<String, Value>) {
    if let RegistryError::Refused { subscriber, reason, .. } = error {
        data.insert("subscriber".into(), subscriber.clone().into());
        data.insert("problem".into(), reason.clone().into());
    }
}
