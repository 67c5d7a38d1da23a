//! Which relocation was refused, why, and by how much: as data. Names of sections and symbols are the caller's to add.

use std::fmt;

use modload_edit::Rejected;
use thiserror::Error;

use crate::field::Beyond;
use crate::{Field, Reason, name};

/// One relocation of a module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// Index of the section that holds the record.
    pub section: u32,
    /// Index of the record in it.
    pub record: u32,
    /// The relocation's number.
    pub raw: u32,
    /// Offset of its place in the section that is relocated.
    pub offset: u64,
    /// Index of its symbol.
    pub symbol: u32,
}

impl Site {
    /// The relocation's name, or its number if no relocation has it.
    #[must_use]
    pub fn kind(&self) -> String {
        name(self.raw).map_or_else(|| format!("relocation number {}", self.raw), str::to_owned)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at +{:#x}", self.kind(), self.offset)
    }
}

/// What the author of a module can do about a value that does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// The code refers to a symbol in a way that only reaches what is near: it must go through the GOT.
    PositionIndependent,
    /// Two parts of the module stand too far from each other.
    Nearer,
    /// The field is too narrow for an address or a size.
    Wider,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Advice::PositionIndependent => "compile with -fPIC",
            Advice::Nearer => "place the module's sections nearer to each other",
            Advice::Wider => "use a wider field",
        })
    }
}

/// A relocation that cannot be done. Its text is that of its [site](Error::site) and that of its [problem](Error::problem).
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// The value does not fit its field.
    Overflow {
        /// Which relocation.
        site: Site,
        /// What does not fit.
        value: i128,
        /// Its distance from the nearest value that would.
        beyond: u64,
        /// Width of the field.
        bits: u32,
        /// What to do about it.
        advice: Advice,
    },
    /// The place, or a part of it, lies outside its section.
    Outside {
        /// Which relocation.
        site: Site,
        /// How many bytes it writes.
        width: u8,
        /// How many there are.
        size: u64,
    },
    /// The kind belongs to an instruction, but before the place there is no room for one.
    NoOpcode {
        /// Which relocation.
        site: Site,
        /// How many bytes there would have to be.
        opcode: u8,
    },
    /// The symbol table ends before this symbol.
    NoSymbol {
        /// Which relocation.
        site: Site,
    },
    /// The section of the symbol was not kept.
    Discarded {
        /// Which relocation.
        site: Site,
    },
    /// The object of the symbol is not there yet.
    Waiting {
        /// Which relocation.
        site: Site,
    },
    /// The relocation is none of those that this crate does.
    Unsupported {
        /// Which relocation.
        site: Site,
        /// Why not.
        reason: Reason,
    },
    /// The symbol has no GOT slot: the plan of the slots did not see this relocation.
    MissingSlot {
        /// Which relocation.
        site: Site,
    },
    /// The sink did not take the edit; most often the place held something else.
    Rejected {
        /// Which relocation.
        site: Site,
        /// What the sink said.
        source: Rejected,
    },
}

impl Error {
    /// `value` does not fit this field.
    #[cold]
    pub(crate) fn overflow(site: Site, field: Field, value: i64, advice: Advice) -> Error {
        let Beyond { value, by: beyond } = field.beyond(value);
        Error::Overflow { site, value, beyond, bits: field.bits(), advice }
    }

    /// Which relocation it was.
    #[must_use]
    pub fn site(&self) -> &Site {
        match self {
            Error::Overflow { site, .. }
            | Error::Outside { site, .. }
            | Error::NoOpcode { site, .. }
            | Error::NoSymbol { site }
            | Error::Discarded { site }
            | Error::Waiting { site }
            | Error::Unsupported { site, .. }
            | Error::MissingSlot { site }
            | Error::Rejected { site, .. } => site,
        }
    }

    /// What is wrong with it, without the relocation and its place: for callers that can name section and symbol.
    #[must_use]
    pub fn problem(&self) -> Problem<'_> {
        Problem(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.site(), self.problem())
    }
}

/// What is wrong with a relocation, to be displayed.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a>(&'a Error);

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Error::Overflow { value, beyond, bits, advice, .. } => {
                write!(f, "{} is {beyond:#x} beyond its {bits}-bit field; {advice}", Hex(*value))
            }
            Error::Outside { width, size, .. } => {
                write!(f, "its {width} bytes do not lie within a section of {size:#x}")
            }
            Error::NoOpcode { opcode, .. } => {
                write!(f, "no room for the {opcode} bytes of an instruction before it")
            }
            Error::NoSymbol { site } => write!(f, "there is no symbol {}", site.symbol),
            Error::Discarded { site } => write!(f, "the section of symbol {} was not kept", site.symbol),
            Error::Waiting { site } => write!(f, "the object of symbol {} is not there yet", site.symbol),
            Error::Unsupported { reason, .. } => reason.fmt(f),
            Error::MissingSlot { site } => write!(f, "symbol {} has no GOT slot", site.symbol),
            Error::Rejected { source, .. } => Refusal(source).fmt(f),
        }
    }
}

/// Why an edit was not taken, without addresses or what has been written: the same in every run.
struct Refusal<'a>(&'a Rejected);

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Rejected::Mismatch { expected, .. } => write!(
                f,
                "its place should hold {expected:02x?} before it is written; the file, or another relocation, has put \
                 something else there"
            ),
            other => other.fmt(f),
        }
    }
}

/// Hexadecimal with a sign.
struct Hex(i128);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:#x}", if self.0 < 0 { "-" } else { "" }, self.0.unsigned_abs())
    }
}
