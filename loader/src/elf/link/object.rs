//! One object of a link unit, and the name of the object in errors.

use crate::elf::error::ObjectError;
use crate::elf::file::File;

/// The most bytes that all names together may have: names may overlap in a string table, so that a small file can hold
/// very many.
pub(crate) const NAMES_LIMIT: u64 = 64 << 20;

/// One object of a link unit.
#[derive(Debug)]
pub(super) struct UnitObject<'a> {
    /// The name for error messages: `add.o`, or `libfoo.a(add.o)`.
    pub(super) name: String,
    pub(super) file: File<'a>,
}

impl UnitObject<'_> {
    pub(super) fn failed(&self, error: ObjectError) -> ObjectError {
        inside(&self.name, error)
    }
}

/// An error of one object of several.
pub(super) fn inside(object: &str, error: ObjectError) -> ObjectError {
    if object.is_empty() {
        return error;
    }
    ObjectError::InObject { object: object.to_owned(), error: Box::new(error) }
}
