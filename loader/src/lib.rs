//! The stages, the states, the registry and the two chains: the user-space equivalent of Linux's `kernel/module/`.
//!
//! [`Loader::load_module`] reads as a table of contents: one line a stage, one file a stage. Each stage takes the
//! result of the stage before and returns a new type. A stage that fails drops all earlier results, newest first; there
//! is no other clean-up.
//!
//! - [`Loader`]: a registry, two chains and a policy. The crate `modload` wraps a loader into a `Host`.
//! - [`Image`]: bytes of a trusted author, a name and parameters.
//! - [`Module`] and [`Reference`]: a module in memory, and a counted reference that prevents unloading.
//! - [`Subscriber`]: called when a module is COMING, LIVE and GOING; may refuse a module that is COMING.
//! - [`Onlooker`]: a debugger or profiler, called when the module's text is published.
//! - [`Timeline`]: the events in order, without addresses or times, for snapshot tests.
//!
//! The files are in five tiers, a folder each. A file imports from its own tier and from the tiers above this one in
//! the table:
//!
//! | folder | contents |
//! |---|---|
//! | `vocabulary` | stages, states and other small types |
//! | `elf` | object files as bytes |
//! | `prepare` | one module in memory, before other modules can see this module |
//! | `modules` | the modules of a host: registry, references, subscribers, timeline |
//! | `operate` | loading, unloading, checking, explaining, inspecting |
//!
//! This crate does no I/O, prints nothing and reads no environment. Unsafe code is in `modules/entry.rs` alone, where
//! the module's own functions are called.

#![deny(unsafe_code)]

mod vocabulary;
mod elf;
mod prepare;
mod modules;
mod operate;

pub use elf::error::ObjectError;
pub use elf::file::{File, FileSection};
pub use elf::link::Input;
pub use modload_notifier::{Order, Rank};
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
pub use prepare::error::{PrepareError, RelocationAdvice, Unresolved};
pub use prepare::image::{
    ImageComing, ImageSection, Kallsyms, Machine, MachineError, MemoryImage, Placement, hexadecimal,
};
pub use prepare::names::{ModuleSymbol, ModuleSymbolKind};
pub use prepare::params::{Integer, ParamInfo, ParamType};
pub use prepare::policy::{Check, Exports, ForcedUnload, Policy, Proof, Rule, Verdict};
pub use vocabulary::deferred_error::DeferredError;
pub use vocabulary::externals::{External, Externals, ModuleLibrary};
pub use vocabulary::kept::Kept;
pub use vocabulary::left::LeftBy;
pub use vocabulary::occupant::{Occupant, Occupies};
pub use vocabulary::param_error::ParamError;
pub use vocabulary::rewriting::{HostOperations, Rewriting, TrampolineBranch, TrampolineCall};
pub use vocabulary::sentence::sentence;
pub use vocabulary::stage::Stage;
pub use vocabulary::state::State;
