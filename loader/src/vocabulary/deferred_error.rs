//! Why what waits for an object of a live patch cannot be held back until the object is there.

use thiserror::Error;

/// What waits for an object cannot be held back until then.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum DeferredError {
    /// A record depends on two objects, which come and go on their own.
    #[error(
        "record {record} of section \"{section}\" depends on \"{first}\" and on \"{second}\": it can wait for one only"
    )]
    TwoObjects {
        /// The section.
        section: &'static str,
        /// The record, from 0.
        record: u32,
        /// One object.
        first: String,
        /// The other.
        second: String,
    },
    /// A record says that code of another module is to be rewritten.
    #[error(
        "record {record} of section \"{section}\" is about code of \"{object}\": only its key may be another module's"
    )]
    OtherSite {
        /// The section.
        section: &'static str,
        /// The record, from 0.
        record: u32,
        /// Whose code it is about.
        object: String,
    },
    /// A record is about code that goes when `init` has returned.
    #[error(
        "record {record} of section \"{section}\" waits for \"{object}\", and its site goes when init has returned"
    )]
    InitSite {
        /// The section.
        section: &'static str,
        /// The record, from 0.
        record: u32,
        /// What it waits for.
        object: String,
    },
    /// A place that waits has been rewritten by an engine that does not: what it was for is not there any more.
    #[error(
        "{late} waits for \"{object}\", but {first} of the same module has rewritten its place already: \
         {old} became {new}; what is relocated with the module itself comes early enough"
    )]
    Rewritten {
        /// What would come late: a relocation with its place, its symbol and how much it writes, or a record.
        late: String,
        /// What it waits for.
        object: String,
        /// Which engine's record has been followed.
        first: String,
        /// What stood there, disassembled.
        old: String,
        /// What stands there now, disassembled.
        new: String,
    },
}
