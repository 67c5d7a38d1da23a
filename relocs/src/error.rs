//! The errors of relocations as data: which relocation, which rule, and by how much. The caller adds the names of
//! section and symbol.

use std::fmt;

use modload_edit::Rejected;
use thiserror::Error;

use crate::field::Beyond;
use crate::{Reason, RelocField, name};

/// One relocation of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelocSite {
    /// The index of the section that holds the record.
    pub section: u32,
    /// The index of the record in this section.
    pub record: u32,
    /// The relocation's number.
    pub raw: u32,
    /// The offset of the place within the section that is relocated.
    pub offset: u64,
    /// The index of the symbol.
    pub symbol: u32,
}

impl RelocSite {
    /// The relocation's name, or its number if no relocation has it.
    #[must_use]
    pub fn kind(&self) -> String {
        name(self.raw).map_or_else(|| format!("relocation number {}", self.raw), str::to_owned)
    }
}

impl fmt::Display for RelocSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at +{:#x}", self.kind(), self.offset)
    }
}

/// How the author of a module can make a value fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelocAdvice {
    /// The code uses a short reference to a far symbol. Position-independent code refers to the symbol by the GOT.
    PositionIndependent,
    /// Two sections of the module are too far from each other.
    Nearer,
    /// The field is too narrow for an address or a size.
    Wider,
}

impl fmt::Display for RelocAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RelocAdvice::PositionIndependent => "compile with -fPIC",
            RelocAdvice::Nearer => "place the module's sections nearer to each other",
            RelocAdvice::Wider => "use a wider field",
        })
    }
}

/// A relocation that cannot be applied. The text is that of its [site](RelocError::site) and that of its [problem](RelocError::problem).
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RelocError {
    /// The value does not fit into the field.
    Overflow {
        /// The relocation.
        site: RelocSite,
        /// The value that does not fit.
        value: i128,
        /// The distance from the value to the nearest value that fits.
        beyond: u64,
        /// The width of the field in bits.
        bits: u32,
        /// How to make the value fit.
        advice: RelocAdvice,
    },
    /// Some byte of the place lies outside the section.
    Outside {
        /// The relocation.
        site: RelocSite,
        /// The number of bytes that the relocation writes.
        width: u8,
        /// The size of the section in bytes.
        size: u64,
    },
    /// The kind relocates the operand of an instruction, but the section has too few bytes before the place.
    NoOpcode {
        /// The relocation.
        site: RelocSite,
        /// The number of bytes that must come before the place.
        opcode: u8,
    },
    /// The symbol table ends before this symbol.
    NoSymbol {
        /// The relocation.
        site: RelocSite,
    },
    /// The section of the symbol was discarded.
    Discarded {
        /// The relocation.
        site: RelocSite,
    },
    /// The object of the symbol is not loaded yet.
    Waiting {
        /// The relocation.
        site: RelocSite,
    },
    /// This crate does not support the relocation.
    Unsupported {
        /// The relocation.
        site: RelocSite,
        /// The reason.
        reason: Reason,
    },
    /// The symbol has no GOT slot: the slot plan has not seen this relocation.
    MissingSlot {
        /// The relocation.
        site: RelocSite,
    },
    /// The relocation is for thread-local variables, and the symbol is not one.
    NotThreadLocal {
        /// The relocation.
        site: RelocSite,
    },
    /// The symbol is a thread-local variable, which has no address of its own.
    ThreadLocal {
        /// The relocation.
        site: RelocSite,
    },
    /// The code needs a fixed offset from the thread pointer, and the variable has none.
    NoFixedOffset {
        /// The relocation.
        site: RelocSite,
    },
    /// The instruction is not the one of the ABI's sequence for this relocation.
    Sequence {
        /// The relocation.
        site: RelocSite,
    },
    /// The sink has refused the edit. In most cases the place holds other bytes than expected.
    Rejected {
        /// The relocation.
        site: RelocSite,
        /// The reason of the sink.
        source: Rejected,
    },
}

impl RelocError {
    /// Makes the error for a `value` that does not fit into this field.
    #[cold]
    pub(crate) fn overflow(site: RelocSite, field: RelocField, value: i64, advice: RelocAdvice) -> RelocError {
        let Beyond { value, by: beyond } = field.beyond(value);
        RelocError::Overflow { site, value, beyond, bits: field.bits(), advice }
    }

    /// Returns the relocation.
    #[must_use]
    pub fn site(&self) -> &RelocSite {
        match self {
            RelocError::Overflow { site, .. }
            | RelocError::Outside { site, .. }
            | RelocError::NoOpcode { site, .. }
            | RelocError::NoSymbol { site }
            | RelocError::Discarded { site }
            | RelocError::Waiting { site }
            | RelocError::Unsupported { site, .. }
            | RelocError::MissingSlot { site }
            | RelocError::NotThreadLocal { site }
            | RelocError::ThreadLocal { site }
            | RelocError::NoFixedOffset { site }
            | RelocError::Sequence { site }
            | RelocError::Rejected { site, .. } => site,
        }
    }

    /// Returns the problem without the relocation and its place, for callers that name the section and the symbol themselves.
    #[must_use]
    pub fn problem(&self) -> RelocProblem<'_> {
        RelocProblem(self)
    }
}

impl fmt::Display for RelocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.site(), self.problem())
    }
}

/// Displays the problem of a relocation.
#[derive(Clone, Copy, Debug)]
pub struct RelocProblem<'a>(&'a RelocError);

impl fmt::Display for RelocProblem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RelocError::Overflow { value, beyond, bits, advice, .. } => {
                write!(f, "{} is {beyond:#x} beyond its {bits}-bit field; {advice}", Hex(*value))
            }
            RelocError::Outside { width, size, .. } => {
                write!(f, "its {width} bytes do not lie within a section of {size:#x}")
            }
            RelocError::NoOpcode { opcode, .. } => {
                write!(f, "no room for the {opcode} bytes of an instruction before it")
            }
            RelocError::NoSymbol { site } => write!(f, "there is no symbol {}", site.symbol),
            RelocError::Discarded { site } => write!(f, "the section of symbol {} was not kept", site.symbol),
            RelocError::Waiting { site } => write!(f, "the object of symbol {} is not there yet", site.symbol),
            RelocError::Unsupported { reason, .. } => reason.fmt(f),
            RelocError::MissingSlot { site } => write!(f, "symbol {} has no GOT slot", site.symbol),
            RelocError::NotThreadLocal { .. } => f.write_str("the symbol is no thread-local variable"),
            RelocError::ThreadLocal { .. } => {
                f.write_str("the symbol is a thread-local variable, which has another address in each thread")
            }
            RelocError::NoFixedOffset { .. } => f.write_str(
                "the variable has no fixed offset from the thread pointer; compile with -fPIC and \
                 -ftls-model=global-dynamic",
            ),
            RelocError::Sequence { .. } => {
                f.write_str("its instruction is not the one that the ABI requires for this relocation")
            }
            RelocError::Rejected { source, .. } => SinkRefusal(source).fmt(f),
        }
    }
}

/// Formats the reason of a sink without addresses and found bytes, so that the text is the same in every run.
struct SinkRefusal<'a>(&'a Rejected);

impl fmt::Display for SinkRefusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Rejected::Mismatch { expected, .. } => write!(
                f,
                "its place must hold {expected:02x?} before the relocation is applied; the file, or another \
                 relocation, has written other bytes there"
            ),
            other => other.fmt(f),
        }
    }
}

/// Formats a signed number in hexadecimal.
struct Hex(i128);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:#x}", if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs())
    }
}
