//! The reasons for which an object cannot become a live patch.

use thiserror::Error;

/// The linker's error: no file was made. Names of symbols and sections from the object are escaped for a terminal.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PatchLinkError {
    /// The input is not a valid relocatable object for x86-64.
    #[error(transparent)]
    Object(#[from] Box<modload_loader::ObjectError>),
    /// The object's tables cannot be read.
    #[error("the object's tables cannot be read")]
    Tables(#[from] object::read::Error),
    /// A table of the object is not valid.
    #[error("section {section}: {problem}")]
    Malformed {
        /// The section's index.
        section: usize,
        /// The problem.
        problem: &'static str,
    },
    /// The object's sections together hold more bytes than the file.
    #[error("the object's sections hold {bytes} bytes together, and the file has {file}: sections must not overlap")]
    Overlap {
        /// The size of all sections.
        bytes: u64,
        /// The size of the file.
        file: u64,
    },
    /// The object already has relocations that wait.
    #[error("the object has section {section}, so it has been linked already: link the object that the compiler made")]
    LinkedAlready {
        /// The first section of such relocations.
        section: String,
    },
    /// The object has no marked symbol.
    #[error(
        "the object has no marked symbol: declare symbols of other objects with KLP_SYMBOL(object, name, pos) of modload/livepatch.h"
    )]
    NothingMarked,
    /// The object is not a live patch. Linux and modload accept such relocations only from patches.
    #[error("the object is not a live patch: add MODULE_INFO(livepatch, \"Y\") to its source")]
    NoLivePatch,
    /// A mark does not have the form that `KLP_SYMBOL` produces.
    #[error("\"{symbol}\" is not a valid mark: {problem}; KLP_SYMBOL(object, name, pos) takes {form}")]
    Mark {
        /// The symbol.
        symbol: String,
        /// The problem with the mark.
        problem: &'static str,
        /// The correct form.
        form: &'static str,
    },
    /// A name is longer than Linux's limit.
    #[error("\"{symbol}\": its {what} has {bytes} bytes, and Linux's limit is {limit}")]
    TooLong {
        /// The symbol. A very long symbol is cut off.
        symbol: String,
        /// The kind of the name.
        what: &'static str,
        /// The length of the name, or a lower bound of it.
        bytes: usize,
        /// The largest allowed length.
        limit: usize,
    },
    /// A marked symbol is not a reference to another object.
    #[error("\"{symbol}\" {problem}")]
    NoReference {
        /// The symbol.
        symbol: String,
        /// The kind of the symbol, and the correction.
        problem: &'static str,
    },
    /// A marked symbol is in thread-local storage. Modules have no thread-local storage.
    #[error(
        "\"{symbol}\" is thread-local, and modules have no thread-local storage: let a function of {object} return the address"
    )]
    ThreadLocal {
        /// The symbol.
        symbol: String,
        /// The symbol's object.
        object: String,
    },
    /// A section refers to a symbol of an object, and the section is dropped before that object is loaded.
    #[error(
        "{section} refers to \"{symbol}\", but is freed before {object} is loaded: refer to it only from code that is not __init"
    )]
    Init {
        /// The section.
        section: String,
        /// The symbol.
        symbol: String,
        /// The symbol's object.
        object: String,
    },
    /// The new names would be longer than those of any real patch.
    #[error("the new names have {bytes} bytes together, and the limit is {limit}")]
    TooLarge {
        /// The length of all new names together, or a lower bound of it.
        bytes: u64,
        /// The largest allowed length.
        limit: u64,
    },
}

/// Returns a name from the file, escaped for a terminal.
pub(super) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(name) => name.escape_debug().to_string(),
        Err(_) => name.escape_ascii().to_string(),
    }
}
