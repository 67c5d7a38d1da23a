//! The stages of a load, by name and in order.

use std::fmt;

#[cfg(feature = "serde")]
use serde::{Serialize, Serializer};

/// The stages of a load, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// Several objects, and the archive members that these objects need, become one.
    Link,
    /// The headers, tables and indices of the file are checked.
    Validate,
    /// `.modinfo` is read.
    Modinfo,
    /// Modules that may not be loaded are refused.
    Admit,
    /// Sections get their offsets; GOT slots and PLT entries are counted.
    Layout,
    /// The name is reserved. The module is UNFORMED from here on.
    Reserve,
    /// Memory is taken.
    Allocate,
    /// Sections are copied.
    Copy,
    /// Symbols get their addresses.
    Resolve,
    /// Relocations are applied.
    Relocate,
    /// Code is rewritten for the target machine: paravirt, thunks, alternatives, function entries.
    Specialise,
    /// Exports, parameters and constructors are read; read-only data is published; the module can be found. The module is
    /// COMING from here on.
    Form,
    /// The coming chain is called.
    Coming,
    /// Text is published: Linux's `module_enable_ro`.
    Publish,
    /// Resolvers of indirect functions are called.
    Indirect,
    /// Parameters are parsed.
    Params,
    /// Constructors are called.
    Constructors,
    /// `init` is called.
    Init,
    /// ro_after_init data becomes read-only. The module is LIVE from here on.
    Protect,
    /// Init sections are dropped.
    DropInit,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 20] = [
        Stage::Link,
        Stage::Validate,
        Stage::Modinfo,
        Stage::Admit,
        Stage::Layout,
        Stage::Reserve,
        Stage::Allocate,
        Stage::Copy,
        Stage::Resolve,
        Stage::Relocate,
        Stage::Specialise,
        Stage::Form,
        Stage::Coming,
        Stage::Publish,
        Stage::Indirect,
        Stage::Params,
        Stage::Constructors,
        Stage::Init,
        Stage::Protect,
        Stage::DropInit,
    ];

    /// Whether other events record the stage, so that the timeline has no stage event for this one.
    pub(crate) fn tells_itself(self) -> bool {
        matches!(self, Stage::Reserve | Stage::Coming | Stage::Publish | Stage::Init)
    }

    /// Name of the stage in timelines and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Link => "link",
            Stage::Validate => "validate",
            Stage::Modinfo => "modinfo",
            Stage::Admit => "admit",
            Stage::Layout => "layout",
            Stage::Reserve => "reserve",
            Stage::Allocate => "allocate",
            Stage::Copy => "copy",
            Stage::Resolve => "resolve",
            Stage::Relocate => "relocate",
            Stage::Specialise => "specialise",
            Stage::Form => "form",
            Stage::Coming => "coming",
            Stage::Publish => "publish",
            Stage::Indirect => "indirect",
            Stage::Params => "params",
            Stage::Constructors => "constructors",
            Stage::Init => "init",
            Stage::Protect => "protect",
            Stage::DropInit => "drop_init",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(feature = "serde")]
impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
