//! Why an object cannot become a live patch.

use thiserror::Error;

/// A file was not made. What the object calls its symbols and sections is escaped for a terminal.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// It is no sound relocatable object for x86-64.
    #[error(transparent)]
    Object(#[from] Box<modload_loader::ObjectError>),
    /// Its tables cannot be read.
    #[error("its tables cannot be read")]
    Tables(#[from] object::read::Error),
    /// A table of its is not what it must be.
    #[error("section {section}: {problem}")]
    Malformed {
        /// The section's index.
        section: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// Together its sections hold more than the file does.
    #[error("its sections hold {bytes} bytes, the file has {file}: they overlap")]
    Overlap {
        /// Of all sections.
        bytes: u64,
        /// Of the file.
        file: u64,
    },
    /// It holds relocations that wait already.
    #[error("section {section} is there, so it has been linked already: link the object that the compiler has made")]
    LinkedAlready {
        /// The first section of theirs.
        section: String,
    },
    /// There is nothing to do.
    #[error(
        "nothing in it is marked: declare what belongs to another object with KLP_SYMBOL(object, name, pos) of modload/livepatch.h"
    )]
    NothingMarked,
    /// Linux and modload take such files from patches alone.
    #[error("it is no live patch: its source must say MODULE_INFO(livepatch, \"Y\")")]
    NoLivePatch,
    /// A mark is not of the form that `KLP_SYMBOL` makes.
    #[error("\"{symbol}\" is no mark: {problem}; KLP_SYMBOL(object, name, pos) takes {form}")]
    Mark {
        /// The symbol.
        symbol: String,
        /// What is wrong with it.
        problem: &'static str,
        /// What would be right.
        form: &'static str,
    },
    /// A name is longer than Linux takes.
    #[error("\"{symbol}\": its {what} has {bytes} bytes, and Linux takes {limit}")]
    TooLong {
        /// The symbol, the beginning of it if it is very long.
        symbol: String,
        /// Which name.
        what: &'static str,
        /// How long it is, or at least is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// What is marked is not a reference to something elsewhere.
    #[error("\"{symbol}\" {problem}")]
    NoReference {
        /// The symbol.
        symbol: String,
        /// What it is, and the way out.
        problem: &'static str,
    },
    /// What is marked is in thread-local storage, which modules have none of.
    #[error(
        "\"{symbol}\" is thread-local, and modules have no thread-local storage: have a function of {object}'s return its address"
    )]
    ThreadLocal {
        /// The symbol.
        symbol: String,
        /// Its object.
        object: String,
    },
    /// A section that is gone when the object comes refers to it.
    #[error(
        "{section} refers to \"{symbol}\", and is gone when {object} comes: what is __init runs before and never again"
    )]
    Init {
        /// The section.
        section: String,
        /// The symbol.
        symbol: String,
        /// Its object.
        object: String,
    },
    /// The names that it would need are longer than any patch's.
    #[error("its new names have {bytes} bytes, more than {limit}")]
    TooLarge {
        /// How long they are together, or at least are.
        bytes: u64,
        /// How long they may be.
        limit: u64,
    },
}

/// A name of the file's, fit for a terminal.
pub(super) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(name) => name.escape_debug().to_string(),
        Err(_) => name.escape_ascii().to_string(),
    }
}
