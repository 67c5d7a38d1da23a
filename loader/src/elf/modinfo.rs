//! Stage *modinfo*: reads the module's own description.

use std::borrow::Cow;
use std::collections::BTreeSet;

use modload_abi::{modinfo, section};

use crate::elf::error::ObjectError;
use crate::elf::file::File;
use crate::vocabulary::escape::escaped;

/// Linux's MODULE_NAME_LEN, less the closing NUL.
pub(crate) const MAX_NAME: usize = 55;

/// The part of `.modinfo` that a load needs.
#[derive(Clone, Debug)]
pub(crate) struct Modinfo<'a> {
    pub(crate) name: String,
    /// All bytes of the section.
    bytes: Cow<'a, [u8]>,
}

impl Modinfo<'_> {
    fn get(&self, key: &str) -> Option<&[u8]> {
        modinfo::get(&self.bytes, key)
    }

    pub(crate) fn license(&self) -> Option<&[u8]> {
        self.get("license")
    }

    pub(crate) fn vermagic(&self) -> Option<&[u8]> {
        self.get("vermagic")
    }

    pub(crate) fn is_live_patch(&self) -> bool {
        self.get("livepatch").is_some()
    }

    /// Returns the stated sizes of live patching's records. Several values, from files with several headers, are joined
    /// to one invalid value.
    pub(crate) fn patch_record_sizes(&self) -> Option<String> {
        let stated = modinfo::entries(&self.bytes).filter(|entry| entry.key == b"klp_records");
        let stated: BTreeSet<String> = stated.map(|entry| escaped(entry.value)).collect();
        (!stated.is_empty()).then(|| stated.into_iter().collect::<Vec<_>>().join(" and "))
    }

    pub(crate) fn is_gpl_compatible(&self) -> bool {
        self.license().is_some_and(modinfo::is_gpl_compatible)
    }

    /// Returns the shared libraries that the module asks for, in order.
    pub(crate) fn libraries(&self) -> impl Iterator<Item = &[u8]> {
        modinfo::entries(&self.bytes).filter(|entry| entry.key == b"library").map(|entry| entry.value)
    }

    /// Whether `import_ns=` names this namespace.
    pub(crate) fn imports(&self, namespace: &[u8]) -> bool {
        modinfo::entries(&self.bytes).any(|entry| entry.key == b"import_ns" && entry.value == namespace)
    }

    pub(crate) fn license_for_people(&self) -> String {
        self.license().map_or_else(|| "not stated".into(), |license| format!("\"{}\"", escaped(license)))
    }
}

/// Reads `.modinfo`. A module without `name=` is called `stem`. The name is made canonical, so that all later lookups
/// use the canonical name.
pub(crate) fn read<'a>(file: &File<'a>, stem: &str) -> Result<Modinfo<'a>, ObjectError> {
    let bytes = file.contents(section::MODINFO);
    let name = checked(modinfo::get(&bytes, "name").unwrap_or(stem.as_bytes()))?;
    Ok(Modinfo { name, bytes })
}

fn checked(name: &[u8]) -> Result<String, ObjectError> {
    let bad = |why| ObjectError::BadName { name: escaped(name), why };
    if name.is_empty() {
        return Err(bad("it is empty"));
    }
    if name.len() > MAX_NAME {
        return Err(bad("it is longer than 55 bytes"));
    }
    if name.contains(&b'/') {
        return Err(bad("it holds a slash"));
    }
    match std::str::from_utf8(name) {
        Ok(name) if !name.chars().any(|c| c.is_control() || c.is_whitespace()) => {
            Ok(modinfo::canonical(name).into_owned())
        }
        Ok(_) => Err(bad("it holds a blank or a control character")),
        Err(_) => Err(bad("it is not UTF-8")),
    }
}
