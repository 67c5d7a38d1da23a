//! The stages, the states, the registry and the two chains: what Linux keeps in `kernel/module/`.
//!
//! [`Loader::load_module`] reads as a table of contents: one line a stage, one file a stage. Each stage takes what the
//! one before it returned and gives back a new type; a stage that fails drops what came before it, newest first, and
//! there is no other clean-up.
//!
//! - [`Loader`]: a registry, its chains and its policy. The crate `modload` wraps it into a `Host`.
//! - [`Image`]: bytes whose author is trusted, a name and parameters.
//! - [`Module`] and [`Reference`]: a module that is there, and a counted reference that keeps it there.
//! - [`Subscriber`]: hears of a module when it is COMING, LIVE and GOING, and may refuse it when it is COMING.
//! - [`Onlooker`]: a debugger or profiler, shown a module when its text is at its place.
//! - [`Timeline`]: what happened, in order, without addresses or times: made to be snapshotted.
//!
//! The files are in five tiers, a folder each. A file imports from its own tier and from those before it:
//!
//! | folder | what it owns |
//! |---|---|
//! | `vocabulary` | stages, states, errors and other small types |
//! | `elf` | object files as bytes |
//! | `prepare` | one module in memory, before others can see it |
//! | `modules` | the modules of a host: registry, references, subscribers, timeline |
//! | `operate` | loading, unloading, and what else a host does with modules |
//!
//! This crate does no I/O, prints nothing and reads no environment. Unsafe code is in `modules/entry.rs` alone, where the
//! module's own functions are called.

#![deny(unsafe_code)]

mod vocabulary;
mod elf;
mod prepare;
mod modules;
mod operate;

pub use elf::error::ObjectError;
pub use elf::file::{File, Section};
pub use elf::link::Input;
pub use modload_notifier::Order;
pub use modules::chains::{BUILTIN, Membership};
pub use modules::coming::{Coming, SectionBytes};
pub use modules::entry::Image;
pub use modules::error::RegistryError;
pub use modules::inside::{CannotLook, LookError, can_look};
pub use modules::module::{FunctionSymbol, Module, Reference, SectionInfo};
pub use modules::recorder::{Listening, Recording};
pub use modules::subscriber::{Refusal, Subscriber};
pub use modules::timeline::{Event, EventKind, Outcome, Timeline};
pub use operate::error::{Error, LoadError, UnloadError};
pub use operate::explain::{Change, Explanation};
pub use operate::inspect::{
    FunctionBytes, InspectedExport, InspectedNeed, InspectedParam, InspectedSection, InspectedTable, InspectedWait,
    Inspection,
};
pub use operate::load::{Faults, Injected, Loader, NoFaults};
pub use operate::onlooker::{Onlooker, Seen, SeenFunction, SeenSection, Shown};
pub use operate::set_param::SetParamError;
pub use prepare::deferred::{Slice, SlicePlan, Slices, WantedSymbol};
pub use prepare::error::{Advice, PrepareError, Unresolved};
pub use prepare::image::{
    ImageComing, ImageSection, Kallsyms, Machine, MachineError, MemoryImage, Placement, hexadecimal,
};
pub use prepare::names::{Symbol, SymbolKind};
pub use prepare::params::{ParamInfo, ParamType};
pub use prepare::policy::{Check, Exports, ForcedUnload, Policy, Proof, Rule, Verdict};
pub use vocabulary::deferred_error::DeferredError;
pub use vocabulary::externals::{External, Externals};
pub use vocabulary::kept::Kept;
pub use vocabulary::left::LeftBy;
pub use vocabulary::occupant::{Occupant, Occupies};
pub use vocabulary::param_error::ParamError;
pub use vocabulary::rewriting::{Branch, HostOperations, Rewriting, TrampolineCall};
pub use vocabulary::sentence::sentence;
pub use vocabulary::stage::Stage;
pub use vocabulary::state::State;
