//! Reasons why an object file cannot be used.

use std::fmt;

use thiserror::Error;

use crate::vocabulary::sentence::sentence;

/// Why an object file cannot be used.
#[derive(Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The bytes are something else.
    #[error("not a relocatable ELF object: this is {0}")]
    NotAnObject(&'static str),
    /// A field of the file is wrong.
    #[error("{table} {index}: {field} is {value:#x}: {problem}")]
    Malformed {
        /// The table, for example `section header`.
        table: &'static str,
        /// Which entry.
        index: usize,
        /// The field, by the name that the ELF specification uses.
        field: &'static str,
        /// The value of the field.
        value: u64,
        /// The rule that the value breaks.
        problem: &'static str,
    },
    /// The file holds something that this version does not do.
    #[error("{what} \"{name}\": {why}")]
    Unsupported {
        /// `section`, `symbol`, `modinfo`.
        what: &'static str,
        /// The name, escaped.
        name: String,
        /// The reason why this is not supported.
        why: &'static str,
    },
    /// A section has a type that cannot be followed.
    #[error("section \"{section}\": its type is {number:#x}{}: {why}", .kind.map_or_else(String::new, |kind| format!(" ({kind})")))]
    SectionType {
        /// The section's name, escaped.
        section: String,
        /// `sh_type`.
        number: u32,
        /// The name of the type, if there is one.
        kind: Option<&'static str>,
        /// Why not.
        why: &'static str,
    },
    /// A table ends within a record.
    #[error(
        "section \"{section}\": it has {size} bytes, which is no whole number of records of {record}: \
         the last {} would be passed over",
        .size % .record
    )]
    PartOfRecord {
        /// The section's name, escaped.
        section: String,
        /// The size of the section in bytes.
        size: u64,
        /// The size of a record.
        record: u64,
    },
    /// A record of one of the module's own tables is wrong.
    #[error("record {record} of section \"{section}\": {problem}")]
    BadRecord {
        /// Which section.
        section: &'static str,
        /// Which record, from 0.
        record: usize,
        /// The rule that the record breaks.
        problem: &'static str,
    },
    /// A section of compact relocations cannot be read.
    #[error("section \"{section}\" of compact relocations (SHT_CREL): {problem}")]
    Crel {
        /// The section's name, escaped.
        section: String,
        /// The rule that the section breaks.
        problem: modload_abi::crel::CrelError,
    },
    /// The file's sections are larger than the policy allows.
    #[error("its sections take {bytes} bytes, and the limit is {limit}")]
    TooLarge {
        /// The sum of the sizes, with alignment.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The name cannot be a module's.
    #[error("\"{name}\" cannot be a module's name: {why}")]
    BadName {
        /// The name, escaped.
        name: String,
        /// The rule that the name breaks.
        why: &'static str,
    },
    /// One object of several is at fault.
    #[error("{object}")]
    InObject {
        /// Which: `add.o`, or `libfoo.a(add.o)`.
        object: String,
        /// The error in the object.
        #[source]
        error: Box<ObjectError>,
    },
    /// Two objects of a link unit define a symbol.
    #[error("\"{symbol}\" is defined in {first} and again in {second}")]
    DefinedTwice {
        /// The symbol, escaped.
        symbol: String,
        /// The object that was linked first.
        first: String,
        /// The other one.
        second: String,
    },
}

impl fmt::Debug for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

impl ObjectError {
    /// Returns the error number that Linux's `init_module(2)` gives for this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            ObjectError::BadName { .. } => libc::EINVAL,
            ObjectError::InObject { error, .. } => error.errno(),
            _ => libc::ENOEXEC,
        }
    }
}
