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
//! This crate does no I/O, prints nothing and reads no environment. Unsafe code is in `entry.rs` alone, where the
//! module's own functions are called.

#![deny(unsafe_code)]

mod error;
mod timeline;

// In the order of the stages.
mod file;
mod link;
mod validate;
mod modinfo;
mod policy;
mod admit;
mod layout;
mod registry;
mod memory;
mod resolve;
mod vague;
mod relocate;
mod specialise;
mod deferred;
mod form;
mod unwind;
mod chains;
mod announced;
mod onlooker;
mod params;
mod entry;
mod load;
mod inside;
mod left;
mod quarantine;
mod unload;
mod inspect;
mod check;
mod plan;
mod image;

mod fork;
mod module;
mod names;
mod set_param;
mod suggest;

pub use chains::{BUILTIN, Membership, Refusal, Subscriber};
pub use deferred::{DeferredError, Slice, SlicePlan, Slices, WantedSymbol};
pub use entry::Image;
pub use error::{Advice, Error, LoadError, Stage, UnloadError, Unresolved, sentence};
pub use file::{File, Section};
pub use form::Exports;
pub use image::{ImageComing, ImageSection, Kallsyms, Machine, MachineError, MemoryImage, Placement, hexadecimal};
pub use inside::{CannotLook, LookError, Occupant, Occupies, can_look};
pub use inspect::{
    FunctionBytes, InspectedExport, InspectedNeed, InspectedParam, InspectedSection, InspectedTable, InspectedWait,
    Inspection,
};
pub use left::LeftBy;
pub use link::Input;
pub use load::{Faults, Injected, Loader, NoFaults};
pub use memory::{Coming, SectionBytes};
pub use modload_notifier::Order;
pub use module::{FunctionSymbol, Module, Reference, SectionInfo, Symbol};
pub use names::SymbolKind;
pub use onlooker::{Kept, Onlooker, Seen, SeenFunction, SeenSection, Shown};
pub use params::{ParamError, ParamInfo, ParamType};
pub use plan::{Change, Explanation};
pub use policy::{Check, ForcedUnload, Policy, Proof, Rule, Verdict};
pub use registry::State;
pub use resolve::{External, Externals};
pub use set_param::SetParamError;
pub use specialise::{Branch, HostOperations, Rewriting, TrampolineCall};
pub use timeline::{Event, EventKind, Listening, Outcome, Recording, Timeline};
