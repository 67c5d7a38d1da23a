//! Linux's loadable-module subsystem, in user space: a plugin system that loads relocatable objects.
//!
//! ```
//! use std::process::Command;
//!
//! use modload::{Host, Image};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // A plugin, compiled as plainly as can be.
//!     let dir = tempfile::tempdir()?;
//!     let (source, object) = (dir.path().join("adder.c"), dir.path().join("adder.o"));
//!     std::fs::write(&source, "int add(int a, int b) { return a + b; }")?;
//!     assert!(Command::new("cc").args(["-O2", "-c", "-o"]).arg(&object).arg(&source).status()?.success());
//!
//!     // A host loads it, calls it, and lets it go.
//!     let host = Host::builder().process_symbols().build()?;
//!     // SAFETY: the plugin is ours: it does what is written above.
//!     let adder = host.load(&unsafe { Image::trusted(std::fs::read(&object)?) }.named("adder"))?;
//!     // SAFETY: that is the type of the function above.
//!     let add = unsafe { adder.symbol::<extern "C" fn(i32, i32) -> i32>("add")? };
//!     assert_eq!(add(2, 3), 5);
//!     adder.unload()?;
//!     assert!(host.modules().is_empty());
//!     Ok(())
//! }
//! ```
//!
//! - [`Host`], [`HostBuilder`]: holds modules; what it exports to them, and what it allows.
//! - [`Image`]: the bytes of a module whose author is trusted, its name and its parameters.
//! - [`Module`]: a counted reference to a loaded module. As long as one is held, the module stays.
//! - [`Symbol`]: a typed function or variable of a module, borrowed from the [`Module`], so that it cannot outlive it.
//! - [`Subscriber`], [`Order`]: hears of modules that come and go, in an order of its own choice; can refuse them.
//! - [`Inspection`], [`ModuleFile`]: what a file holds, without loading it; the file need not be trusted.
//! - [`Catalog`]: the modules of a folder, and the order in which they load.
//! - [`Timeline`], [`Recording`]: what happened, in order, without addresses and times: made for snapshot tests.
//! - [`klp_link`]: an object whose references to other objects are marked becomes a live patch that loads before they do.
//! - [`Backtrace`]: the calls a thread is in, with the modules' functions by name.
//! - [`LoadError`], [`UnloadError`]: which module, which stage, which section and symbol, and the way out.
//!
//! Running foreign code is unsafe, in two places: [`Image::trusted`] and [`Module::symbol`] (with their variants
//! [`read_trusted`] and [`Module::call`], and [`Trust`] for both). Everything else is safe to call.
//!
//! Modules written against the SDK (`sdk/include/modload/module.h`) may call `register_module_notifier`, which every
//! host exports.

#![deny(unsafe_code)]

mod backtrace;
mod builder;
mod aligned;
mod c_api;
mod c_library;
mod catalog;
mod debugger;
mod elsewhere;
mod file;
mod foreign;
mod host;
mod jit_list;
mod onlookers;
mod own_symbols;
mod perf_map;
mod symbol_file;

pub use backtrace::{Backtrace, BacktraceFrame};
pub use builder::{HostBuilder, OtherCpu};
pub use catalog::{Catalog, CatalogError};
pub use elsewhere::Elsewhere;
pub use file::{Compression, ModuleFile, ReadError, SIZE_LIMIT, TrustedFileError};
pub use foreign::{Module, Symbol, SymbolError, Trust, read_trusted, set_static_call};
pub use host::{BlockingThread, Host, WeakHost};
pub use modload_abi::modinfo::is_same_name;
pub use modload_alternatives::{Features, UnknownFeature};
pub use modload_edit::{Addr, Edit, disassembled, formatter};
pub use modload_ftrace::{
    BadPattern, Call, Filter, FunctionTrace, HostFunction, Mode, Pattern, Redirect, Redirecting, Registers, TraceError,
    TraceOptions, Traceable, Tracer, Tracing, render, trace,
};
pub use modload_livepatch::link as klp_link;
pub use modload_livepatch::{
    Blocked, Callbacks, FuncSpec, ObjectSpec, ObjectStatus, PatchError, PatchSpec, PatchStatus, StateSpec, Target,
    Transition, Why,
};
pub use modload_loader::{
    BUILTIN, Change, Check, Coming, Error, Event, EventKind, Explanation, FunctionBytes, FunctionSymbol, Image,
    ImageSection, Input, InspectedExport, InspectedNeed, InspectedParam, InspectedSection, InspectedTable,
    InspectedWait, Inspection, Kallsyms, LeftBy, Listening, LoadError, MachineError, Membership, MemoryImage,
    Module as ModuleInfo, ModuleSymbolKind, ObjectError, Occupant, Occupies, Order, Outcome, ParamError, ParamInfo,
    ParamType, PrepareError, Recording, Refusal, RegistryError, Rule, SectionInfo, SetParamError, Stage, State,
    Subscriber, Timeline, UnloadError, Unresolved, Verdict, sentence,
};
pub use modload_static_keys::{KeyError, StaticCall, StaticKey};
pub use modload_text::{Arena, ArenaError, Class, PokeError, StripeUsage, TrapMask};
pub use modload_threads::Error as SignalError;
pub use modload_threads::boundary::{Exception, Thrown};
pub use modload_threads::frames::{Ended, WalkError};
pub use perf_map::PerfMapError;
