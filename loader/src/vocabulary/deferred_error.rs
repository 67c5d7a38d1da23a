//! Reasons why a part of a live patch cannot wait until an object is loaded.

use thiserror::Error;

/// A part of a live patch that depends on an object cannot wait for the object.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum DeferredError {
    /// A record depends on two objects, which are loaded and unloaded independently.
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
    /// A record requests rewriting of another module's code.
    #[error(
        "record {record} of section \"{section}\" is about code of \"{object}\": only its key may be another module's"
    )]
    OtherSite {
        /// The section.
        section: &'static str,
        /// The record, from 0.
        record: u32,
        /// The owner of the code.
        object: String,
    },
    /// A record refers to code that is freed when `init` has returned.
    #[error(
        "record {record} of section \"{section}\" waits for \"{object}\", and its site goes when init has returned"
    )]
    InitSite {
        /// The section.
        section: &'static str,
        /// The record, from 0.
        record: u32,
        /// The object.
        object: String,
    },
    /// An engine that does not wait has already rewritten a place that waits, so the waiting part no longer applies.
    #[error(
        "{late} waits for \"{object}\", but {first} of the same module has rewritten its place already: \
         {old} became {new}; what is relocated with the module itself comes early enough"
    )]
    Rewritten {
        /// The late part: a relocation with place, symbol and length, or a record.
        late: String,
        /// The object.
        object: String,
        /// Which engine's record has been followed.
        first: String,
        /// The old code, disassembled.
        old: String,
        /// The present code, disassembled.
        new: String,
    },
}
