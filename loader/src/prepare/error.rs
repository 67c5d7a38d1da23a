//! Why a module cannot be prepared in memory.

use std::fmt;

use modload_text::{OutOfMemory, PublishFailed};
use modload_tls::{NotDelivered, TlsError};
#[cfg(feature = "serde")]
use serde::Serialize;
use thiserror::Error;

use crate::elf::error::ObjectError;
use crate::vocabulary::deferred_error::DeferredError;
use crate::vocabulary::param_error::ParamError;
use crate::vocabulary::sentence::{Joined, sentence};

/// An undefined symbol.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(Serialize))]
pub struct Unresolved {
    /// Name of the symbol, escaped.
    pub symbol: String,
    /// Place of the first use: `.text+0x1c in greet_init`. Empty if no relocation uses the symbol.
    pub used_at: String,
    /// Number of relocations that use the symbol.
    pub uses: u64,
    /// A similar known name.
    pub nearest: Option<String>,
    /// The reason why an existing symbol cannot be used.
    pub because: Option<&'static str>,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.symbol)?;
        if let Some(because) = self.because {
            write!(f, " ({because})")?;
        }
        if !self.used_at.is_empty() {
            write!(f, " used at {}", self.used_at)?;
        }
        if self.uses > 1 {
            write!(f, " and {} more", self.uses - 1)?;
        }
        match &self.nearest {
            Some(nearest) => write!(f, " (did you mean \"{nearest}\"?)"),
            None => Ok(()),
        }
    }
}

/// The way out of a relocation that does not reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RelocationAdvice {
    /// No advice beyond the relocation's own error.
    None,
    /// The arena is not in the low 2 GiB, which 32-bit absolute fields need.
    NoLowMemory,
}

/// Why a module cannot be prepared in memory.
#[derive(Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The object file cannot be used.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// There can be no thread-local variables.
    #[error(transparent)]
    ThreadLocal(#[from] TlsError),
    /// The contents of thread-local variables cannot be brought into every thread.
    #[error("its thread-local variables cannot be set in every thread")]
    NotDelivered(#[from] NotDelivered),
    /// All undefined symbols.
    #[error("{} unresolved symbol{}: {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, Joined(.0, "; "))]
    Unresolved(Vec<Unresolved>),
    /// A relocation cannot be done.
    #[error("{}{}", relocation(.place, .symbol, .error), match .advice {
        RelocationAdvice::None => "",
        RelocationAdvice::NoLowMemory => " (no address space could be had in the low 2 GiB)",
    })]
    Relocation {
        /// Section and offset: `.text+0x1c`.
        place: String,
        /// Name of the symbol, escaped; for a section symbol, the name of the section.
        symbol: String,
        /// Which and why.
        error: Box<modload_relocs::RelocError>,
        /// Additional advice.
        advice: RelocationAdvice,
    },
    /// The address of a section is unknown or impossible.
    #[error("section \"{section}\": {problem}")]
    NoAddress {
        /// The name of the section.
        section: String,
        /// The problem.
        problem: &'static str,
    },
    /// A record by which code is to be rewritten cannot be followed.
    #[error("section \"{section}\"")]
    Rewrite {
        /// The section of the record.
        section: &'static str,
        /// The record and the problem.
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Parts that depend on an object of a live patch cannot wait.
    #[error(transparent)]
    Deferred(Box<DeferredError>),
    /// The module's call frame information cannot be used.
    #[error("section \"{section}\"")]
    Frames {
        /// The section's name.
        section: &'static str,
        /// The problem.
        #[source]
        error: modload_threads::frames::Malformed,
    },
    /// The text or the read-only data could not be published.
    #[error(transparent)]
    Publish(#[from] PublishFailed),
    /// A parameter does not accept its value.
    #[error("parameter \"{name}\"")]
    Param {
        /// The name of the parameter.
        name: String,
        /// The reason.
        source: ParamError,
    },
    /// ro_after_init data could not be protected.
    #[error("making ro_after_init data read-only")]
    Protect(#[source] std::io::Error),
}

impl fmt::Debug for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// Returns the text of a relocation's error, with the names of section and symbol.
fn relocation(place: &str, symbol: &str, error: &modload_relocs::RelocError) -> String {
    format!("{} at {place} against \"{symbol}\": {}", error.site().kind(), error.problem())
}

impl From<DeferredError> for PrepareError {
    fn from(error: DeferredError) -> PrepareError {
        PrepareError::Deferred(Box::new(error))
    }
}

impl PrepareError {
    /// Returns the error number that Linux's `init_module(2)` gives for this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            PrepareError::Object(error) => error.errno(),
            PrepareError::OutOfMemory(_) | PrepareError::Publish(_) | PrepareError::Protect(_) => libc::ENOMEM,
            PrepareError::Unresolved(_) => libc::ENOENT,
            PrepareError::Param { .. } => libc::EINVAL,
            _ => libc::ENOEXEC,
        }
    }
}
