//! Reasons why a load or an unload was refused: as data, with sentences for messages.

use std::fmt;

use thiserror::Error;

use crate::elf::error::ObjectError;
use crate::modules::error::RegistryError;
use crate::prepare::error::PrepareError;
use crate::vocabulary::escape::escaped;
use crate::vocabulary::left::LeftBy;
use crate::vocabulary::occupant::Occupant;
use crate::vocabulary::sentence::{Joined, sentence};
use crate::vocabulary::stage::Stage;
use crate::vocabulary::state::State;

/// A load that was refused or has failed. Nothing of the module is left.
#[derive(Error)]
#[error("{module}: {stage}")]
pub struct LoadError {
    /// The module's name, or the file's stem if the name was not yet known.
    pub module: String,
    /// In which stage.
    pub stage: Stage,
    /// The reason.
    #[source]
    pub error: Box<Error>,
}

impl fmt::Debug for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

impl LoadError {
    /// Makes an error of a stage into that of a load of which only the file's stem is known.
    pub(crate) fn of_stage<E: Into<Error>>(stem: &str, stage: Stage) -> impl FnOnce(E) -> LoadError {
        move |error| LoadError { module: escaped(stem.as_bytes()), stage, error: Box::new(error.into()) }
    }
}

/// Why a load failed.
#[derive(Error)]
#[non_exhaustive]
pub enum Error {
    /// The object file cannot be used.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The module cannot be prepared in memory.
    #[error(transparent)]
    Prepare(PrepareError),
    /// The registry or a subscriber refuses the module.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A symbol is for GPL-compatible modules only.
    #[error("\"{symbol}\" of {owner} is exported to GPL-compatible modules only, and the licence is {license}")]
    GplOnly {
        /// The symbol, escaped.
        symbol: String,
        /// The exporter.
        owner: String,
        /// The module's licence, quoted, or "not stated".
        license: String,
    },
    /// A symbol is exported into a namespace that the module does not import.
    #[error("\"{symbol}\" of {owner} is exported into the namespace {namespace}, which the module does not import")]
    Namespace {
        /// The symbol, escaped.
        symbol: String,
        /// The exporter.
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
        /// The exporter.
        owner: String,
        /// The CRC in the exporter.
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
    /// A shared library that the module asks for cannot be opened.
    #[error("it asks for the library \"{name}\", which cannot be opened: {because}")]
    Library {
        /// The library's name, escaped.
        name: String,
        /// The reason.
        because: String,
    },
    /// The name is on the blocklist.
    #[error("its name is on the host's blocklist")]
    Blocked,
    /// The resolver of an indirect function returned NULL.
    #[error("the resolver of an indirect function at {resolver} returned NULL")]
    NotPicked {
        /// Section and offset of the resolver.
        resolver: String,
    },
    /// An exception, a panic, or the end of the thread left the module's code instead of a return.
    #[error("{function} was left by {thrown}")]
    Thrown {
        /// Which: `init`, a constructor, the resolver of an indirect function.
        function: &'static str,
        /// The caught exception or panic, and the place.
        thrown: Box<LeftBy>,
    },
    /// Another module, or the host, already exports a symbol of this name.
    #[error("exports \"{symbol}\", which {owner} exports already")]
    DuplicateExport {
        /// The symbol, escaped.
        symbol: String,
        /// The exporter.
        owner: String,
    },
    /// `init` returned a negative error number.
    #[error("init returned {0}{errno}", errno = errno_name(*.0))]
    Init(i32),
    /// A test made this stage fail.
    #[error("made to fail by a test")]
    Injected,
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

impl From<PrepareError> for Error {
    fn from(error: PrepareError) -> Error {
        match error {
            PrepareError::Object(error) => Error::Object(error),
            error => Error::Prepare(error),
        }
    }
}

/// The names of common error numbers.
const ERRNO_NAMES: [(i32, &str); 10] = [
    (libc::EPERM, " (EPERM)"),
    (libc::ENOENT, " (ENOENT)"),
    (libc::EIO, " (EIO)"),
    (libc::ENOMEM, " (ENOMEM)"),
    (libc::EFAULT, " (EFAULT)"),
    (libc::EBUSY, " (EBUSY)"),
    (libc::EEXIST, " (EEXIST)"),
    (libc::ENODEV, " (ENODEV)"),
    (libc::EINVAL, " (EINVAL)"),
    (libc::EOPNOTSUPP, " (EOPNOTSUPP)"),
];

/// Returns the name of a negative error number, in brackets, or an empty text if the number is not a common one.
fn errno_name(result: i32) -> &'static str {
    let number = result.saturating_neg();
    ERRNO_NAMES.iter().find(|(known, _)| *known == number).map_or("", |(_, name)| name)
}

impl Error {
    /// Returns the error number that Linux's `init_module(2)` gives for this.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Error::Object(error) => error.errno(),
            Error::Prepare(error) => error.errno(),
            Error::Registry(error) => error.errno(),
            Error::License { .. } | Error::Blocked => libc::EPERM,
            Error::Namespace { .. } => libc::EINVAL,
            Error::Init(result) => result.saturating_neg(),
            _ => libc::ENOEXEC,
        }
    }
}

/// An unload that was refused. The module is unchanged.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnloadError {
    /// There is no such module.
    #[error("{0}: no module of this name is loaded")]
    NotFound(String),
    /// The module is in use.
    #[error("{module}: in use{}{}{}", if .by.is_empty() { "" } else { " by " }, Joined(.by, ", "), held(*.references))]
    InUse {
        /// The name of the module.
        module: String,
        /// The modules that use symbols of this one.
        by: Vec<String>,
        /// How many references are held besides.
        references: usize,
    },
    /// Threads are in the module's code, or will return there.
    #[error("{module}: its code is not left: {}", Joined(.threads, "; "))]
    Occupied {
        /// The name of the module.
        module: String,
        /// The threads, with their places.
        threads: Vec<Occupant>,
    },
    /// Threads in the module's code cannot be detected.
    #[error("{module}: whether its code is left cannot be seen: {why}")]
    NotSeen {
        /// The name of the module.
        module: String,
        /// Which threads could not be held, and why.
        why: String,
    },
    /// The policy does not allow force.
    #[error("{0}: this host does not unload by force: wait until it is no longer used")]
    ForceRefused(String),
    /// The module is not LIVE.
    #[error("{module}: it is {state}, and only a LIVE module can be unloaded")]
    NotLive {
        /// The name of the module.
        module: String,
        /// The state of the module.
        state: State,
    },
}

impl fmt::Debug for UnloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// How many references are held, in brackets, behind a word.
pub(crate) fn held(references: usize) -> String {
    match references {
        0 => String::new(),
        1 => " (1 reference is held)".into(),
        n => format!(" ({n} references are held)"),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::{LoadError, Stage, UnloadError, errno_name, sentence};
    use crate::elf::error::ObjectError;
    use crate::prepare::error::PrepareError;
    use crate::vocabulary::param_error::ParamError;

    fn errors() -> [LoadError; 2] {
        let source = ParamError::NeedsValue;
        let param = PrepareError::Param { name: "speed".into(), source };
        let bad =
            ObjectError::InObject { object: "add.o".into(), error: Box::new(ObjectError::NotAnObject("a script")) };
        let failed = |stage, error| LoadError { module: "greet".into(), stage, error: Box::new(error) };
        [failed(Stage::Params, param.into()), failed(Stage::Link, bad.into())]
    }

    #[test]
    fn each_text_of_a_chain_is_one_level() {
        let texts = errors().map(|error| {
            let mut levels = vec![error.to_string()];
            let mut cause = error.source();
            while let Some(source) = cause {
                levels.push(source.to_string());
                cause = source.source();
            }
            levels.join(" | ")
        });
        assert_eq!(
            texts,
            [
                "greet: params | parameter \"speed\" | it needs a value: NAME=VALUE",
                "greet: link | add.o | not a relocatable ELF object: this is a script"
            ]
        );
    }

    #[test]
    fn what_main_returns_is_shown_as_a_sentence() {
        let [param, bad] = errors();
        assert_eq!(format!("{param:?}"), "greet: params: parameter \"speed\": it needs a value: NAME=VALUE");
        assert_eq!(format!("{bad:?}"), sentence(&bad));
        let unload = UnloadError::InUse { module: "greet".into(), by: vec!["guest".into()], references: 1 };
        assert_eq!(format!("{unload:?}"), "greet: in use by guest (1 reference is held)");
        assert_eq!(
            [errno_name(-22), errno_name(-95), errno_name(-1234), errno_name(22)],
            [" (EINVAL)", " (EOPNOTSUPP)", "", ""]
        );
    }
}
