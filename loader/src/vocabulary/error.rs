//! Why a load or an unload was refused: as data, with sentences for people.

use std::fmt;

use modload_text::{OutOfMemory, PublishFailed};
use serde::Serialize;
use thiserror::Error;

use crate::vocabulary::deferred_error::DeferredError;
use crate::vocabulary::left::LeftBy;
use crate::vocabulary::occupant::Occupant;
use crate::vocabulary::param_error::ParamError;
use crate::vocabulary::stage::Stage;
use crate::vocabulary::state::State;

/// A load that was refused or failed. Nothing of it is left.
#[derive(Debug, Error)]
#[error("{module}: {stage}: {error}")]
pub struct LoadError {
    /// The module's name, or the file's stem if the name was not yet known.
    pub module: String,
    /// In which stage.
    pub stage: Stage,
    /// Why.
    #[source]
    pub error: Box<Error>,
}

/// A symbol that nobody defines.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Unresolved {
    /// Its name, escaped.
    pub symbol: String,
    /// Where it is used first: `.text+0x1c in greet_init`. Empty if no relocation uses it.
    pub used_at: String,
    /// How many relocations use it.
    pub uses: u64,
    /// A known name that is much like it.
    pub nearest: Option<String>,
    /// What stands in the way, if it is there but cannot be used.
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

struct List<'a, T>(&'a [T], &'static str);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if at == 0 { "" } else { self.1 })?;
        }
        Ok(())
    }
}

/// The way out of a relocation that does not reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// What the relocation's own error says is all there is to say.
    None,
    /// The arena is not in the low 2 GiB, which 32-bit absolute fields need.
    NoLowMemory,
}

/// Why a load failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The bytes are something else.
    #[error("not a relocatable ELF object: this is {0}")]
    NotAnObject(&'static str),
    /// A field of the file is wrong.
    #[error("{table} {index}: {field} is {value:#x}: {problem}")]
    Malformed {
        /// Which table, `section header` say.
        table: &'static str,
        /// Which entry.
        index: usize,
        /// Which field, by its name in the ELF specification.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What is wrong with that.
        problem: &'static str,
    },
    /// The file holds something that this version does not do.
    #[error("{what} \"{name}\": {why}")]
    Unsupported {
        /// `section`, `symbol`, `modinfo`.
        what: &'static str,
        /// Its name, escaped.
        name: String,
        /// What is not done.
        why: &'static str,
    },
    /// A section has a type that cannot be followed.
    #[error("section \"{section}\": its type is {number:#x}{}: {why}", .kind.map_or_else(String::new, |kind| format!(" ({kind})")))]
    SectionType {
        /// The section's name, escaped.
        section: String,
        /// `sh_type`.
        number: u32,
        /// The type's name, if it has one.
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
        /// Its size in bytes.
        size: u64,
        /// The size of a record.
        record: u64,
    },
    /// A section of compact relocations cannot be read.
    #[error("section \"{section}\" of compact relocations (SHT_CREL): {problem}")]
    Crel {
        /// The section's name, escaped.
        section: String,
        /// What is wrong with it.
        problem: modload_abi::crel::CrelError,
    },
    /// The file's sections are larger than the policy allows.
    #[error("its sections take {bytes} bytes, and the limit is {limit}")]
    TooLarge {
        /// Their sum, with alignment.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// The name cannot be a module's.
    #[error("\"{name}\" cannot be a module's name: {why}")]
    BadName {
        /// The name, escaped.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A module of this name is LIVE (EEXIST).
    #[error("a module of this name is already loaded")]
    Exists,
    /// A module of this name is going, or its load failed while we waited (EBUSY).
    #[error("a module of this name is being unloaded, or has just failed to load")]
    Busy,
    /// To wait would be to wait for oneself.
    #[error("waiting would never end: {}", List(.0, ", which waits for "))]
    Cycle(Vec<String>),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// Symbols that nobody defines: all of them.
    #[error("{} unresolved symbol{}: {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, List(.0, "; "))]
    Unresolved(Vec<Unresolved>),
    /// A symbol is for GPL-compatible modules only.
    #[error("\"{symbol}\" of {owner} is exported to GPL-compatible modules only, and the licence is {license}")]
    GplOnly {
        /// The symbol, escaped.
        symbol: String,
        /// Who exports it.
        owner: String,
        /// The module's licence, quoted, or "not stated".
        license: String,
    },
    /// A symbol is exported into a namespace that the module does not import.
    #[error("\"{symbol}\" of {owner} is exported into the namespace {namespace}, which the module does not import")]
    Namespace {
        /// The symbol, escaped.
        symbol: String,
        /// Who exports it.
        owner: String,
        /// Into which namespace, escaped.
        namespace: String,
    },
    /// A symbol is not the one that the module was built against.
    #[error("\"{symbol}\" of {owner} has the CRC {exported:#010x}, and the module {}", match .built_against {
        Some(crc) => format!("was built against {crc:#010x}"),
        None => "has no CRC for it in __versions".into(),
    })]
    Version {
        /// The symbol, escaped.
        symbol: String,
        /// Who exports it.
        owner: String,
        /// Its CRC there.
        exported: u32,
        /// The CRC in the module's `__versions`, if there is one.
        built_against: Option<u64>,
    },
    /// The module was built for another host.
    #[error("its vermagic is {found}, and the host's is \"{expected}\"")]
    Vermagic {
        /// The module's, quoted and escaped, or "none".
        found: String,
        /// The host's.
        expected: String,
    },
    /// The licence is not one that the policy allows.
    #[error("its licence is {license}, which is not compatible with the GPL")]
    License {
        /// The licence, quoted and escaped, or "not stated".
        license: String,
    },
    /// The name is on the blocklist.
    #[error("its name is on the host's blocklist")]
    Blocked,
    /// A relocation cannot be done.
    #[error("{}{}", relocation(.place, .symbol, .error), match .advice {
        Advice::None => "",
        Advice::NoLowMemory => " (no address space could be had in the low 2 GiB)",
    })]
    Relocation {
        /// Section and offset: `.text+0x1c`.
        place: String,
        /// The symbol's name, escaped; a section's own name for its section symbol.
        symbol: String,
        /// Which and why.
        error: Box<modload_relocs::RelocError>,
        /// More to say.
        advice: Advice,
    },
    /// One object of several is at fault.
    #[error("{object}: {error}")]
    InObject {
        /// Which: `add.o`, or `libfoo.a(add.o)`.
        object: String,
        /// What is wrong with it.
        error: Box<Error>,
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
    /// The resolver of an indirect function returned NULL.
    #[error("the resolver of an indirect function at {resolver} returned NULL")]
    NotPicked {
        /// Section and offset of the resolver.
        resolver: String,
    },
    /// Where a section stands is not known, or cannot be.
    #[error("section \"{section}\": {problem}")]
    NoAddress {
        /// Which.
        section: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A record by which code is to be rewritten cannot be followed.
    #[error("section \"{section}\": {error}")]
    Rewrite {
        /// Which section it is in.
        section: &'static str,
        /// Which record, and what is wrong.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What waits for an object of a live patch cannot be held back.
    #[error(transparent)]
    Deferred(Box<DeferredError>),
    /// The module's call frame information cannot be used.
    #[error("section \"{section}\": {error}")]
    Frames {
        /// The section's name.
        section: &'static str,
        /// What is wrong with it.
        error: modload_threads::frames::Malformed,
    },
    /// Code of the module was left by an exception, a panic, or the end of its thread, instead of a return.
    #[error("{function} was left by {thrown}")]
    Thrown {
        /// Which: `init`, a constructor, the resolver of an indirect function.
        function: &'static str,
        /// What was thrown, and where; it has been caught.
        thrown: Box<LeftBy>,
    },
    /// A record of one of the module's own tables is wrong.
    #[error("record {record} of section \"{section}\": {problem}")]
    BadRecord {
        /// Which section.
        section: &'static str,
        /// Which record, from 0.
        record: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Somebody else exports a symbol of this name.
    #[error("exports \"{symbol}\", which {owner} exports already")]
    DuplicateExport {
        /// The symbol, escaped.
        symbol: String,
        /// Who has it.
        owner: String,
    },
    /// A subscriber of the coming chain said no.
    #[error("refused by {subscriber}: {reason}")]
    Refused {
        /// Who.
        subscriber: String,
        /// Why.
        reason: String,
        /// The error number it gave, if it is a C subscriber.
        errno: Option<i32>,
    },
    /// The text or the read-only data did not get to its place.
    #[error(transparent)]
    Publish(#[from] PublishFailed),
    /// A parameter's value cannot be taken.
    #[error("parameter \"{name}\": {source}")]
    Param {
        /// Which.
        name: String,
        /// Why.
        source: ParamError,
    },
    /// `init` returned a negative error number.
    #[error("init returned {0}{errno}", errno = errno_name(*.0))]
    Init(i32),
    /// ro_after_init data could not be protected.
    #[error("making ro_after_init data read-only")]
    Protect(#[source] std::io::Error),
    /// A test made this stage fail.
    #[error("made to fail by a test")]
    Injected,
}

/// An error and the whole chain of its causes in one line.
#[must_use]
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !sentence.contains(&text) {
            sentence.push_str(": ");
            sentence.push_str(&text);
        }
        cause = error.source();
    }
    sentence
}

fn relocation(place: &str, symbol: &str, source: &modload_relocs::RelocError) -> String {
    // The relocation's own error begins "R_X86_64_PLT32 at +0x1c: "; names make it "at .text+0x1c against ...".
    let text = source.to_string();
    let kind = text.split(" at ").next().unwrap_or_default();
    let rest = text.split_once(": ").map_or("", |(_, rest)| rest);
    format!("{kind} at {place} against \"{symbol}\": {rest}")
}

/// The customary name of a negative error number, in brackets, if it is a common one.
fn errno_name(result: i32) -> &'static str {
    match result {
        -1 => " (EPERM)",
        -2 => " (ENOENT)",
        -5 => " (EIO)",
        -12 => " (ENOMEM)",
        -14 => " (EFAULT)",
        -16 => " (EBUSY)",
        -17 => " (EEXIST)",
        -19 => " (ENODEV)",
        -22 => " (EINVAL)",
        -95 => " (EOPNOTSUPP)",
        _ => "",
    }
}

impl From<DeferredError> for Error {
    fn from(error: DeferredError) -> Error {
        Error::Deferred(Box::new(error))
    }
}

impl Error {
    /// The Linux error number that `init_module(2)` would give for this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Error::Exists => 17,
            Error::Busy => 16,
            Error::Cycle(_) => 35,
            Error::OutOfMemory(_) | Error::Publish(_) | Error::Protect(_) => 12,
            Error::Unresolved(_) => 2,
            Error::License { .. } | Error::Blocked => 1,
            Error::Namespace { .. } => 22,
            Error::Refused { errno, .. } => errno.unwrap_or(1),
            Error::Param { .. } | Error::BadName { .. } => 22,
            Error::Init(result) => result.saturating_neg(),
            Error::InObject { error, .. } => error.errno(),
            _ => 8,
        }
    }
}

/// An unload that was refused. The module is as it was.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UnloadError {
    /// There is no such module.
    #[error("{0}: no module of this name is loaded")]
    NotFound(String),
    /// Somebody uses it.
    #[error("{module}: in use{}{}{}", if .by.is_empty() { "" } else { " by " }, List(.by, ", "), held(*.references))]
    InUse {
        /// Which.
        module: String,
        /// The modules that use its symbols.
        by: Vec<String>,
        /// How many references are held besides.
        references: usize,
    },
    /// Threads are in its code, or will return to it.
    #[error("{module}: its code is not left: {}", List(.threads, "; "))]
    Occupied {
        /// Which.
        module: String,
        /// Who, and where.
        threads: Vec<Occupant>,
    },
    /// It is not known whether somebody is in its code.
    #[error("{module}: whether its code is left cannot be seen: {why}")]
    NotSeen {
        /// Which.
        module: String,
        /// Which threads could not be held, and why.
        why: String,
    },
    /// The policy does not allow force.
    #[error("{0}: this host does not unload by force: wait until nobody uses it")]
    ForceRefused(String),
    /// It is not LIVE.
    #[error("{module}: it is {state}, and only a LIVE module can be unloaded")]
    NotLive {
        /// Which.
        module: String,
        /// What it is.
        state: State,
    },
}

/// How many references are held, in brackets, behind a word.
pub(crate) fn held(references: usize) -> String {
    match references {
        0 => String::new(),
        1 => " (1 reference is held)".into(),
        n => format!(" ({n} references are held)"),
    }
}
