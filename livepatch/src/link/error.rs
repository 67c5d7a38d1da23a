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
    #[error("its tables cannot be read")]
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
    #[error("its sections hold {bytes} bytes, the file has {file}: they overlap")]
    Overlap {
        /// The size of all sections.
        bytes: u64,
        /// The size of the file.
        file: u64,
    },
    /// The object already has relocations that wait.
    #[error("section {section} is there, so it has been linked already: link the object that the compiler has made")]
    LinkedAlready {
        /// The first section of such relocations.
        section: String,
    },
    /// The object has no marked symbol.
    #[error(
        "nothing in it is marked: declare what belongs to another object with KLP_SYMBOL(object, name, pos) of modload/livepatch.h"
    )]
    NothingMarked,
    /// The object is not a live patch. Linux and modload accept such relocations only from patches.
    #[error("it is no live patch: its source must say MODULE_INFO(livepatch, \"Y\")")]
    NoLivePatch,
    /// A mark does not have the form that `KLP_SYMBOL` produces.
    #[error("\"{symbol}\" is no mark: {problem}; KLP_SYMBOL(object, name, pos) takes {form}")]
    Mark {
        /// The symbol.
        symbol: String,
        /// The problem with the mark.
        problem: &'static str,
        /// The correct form.
        form: &'static str,
    },
    /// A name is longer than Linux's limit.
    #[error("\"{symbol}\": its {what} has {bytes} bytes, and Linux takes {limit}")]
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
        "\"{symbol}\" is thread-local, and modules have no thread-local storage: have a function of {object}'s return its address"
    )]
    ThreadLocal {
        /// The symbol.
        symbol: String,
        /// The symbol's object.
        object: String,
    },
    /// A section refers to a symbol of an object, and the section is dropped before that object is loaded.
    #[error(
        "{section} refers to \"{symbol}\", and is gone when {object} comes: what is __init runs before and never again"
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
    #[error("its new names have {bytes} bytes, more than {limit}")]
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
