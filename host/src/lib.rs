//! Linux's loadable-module subsystem, in user space: a plugin system that loads relocatable objects.
//!
//! ```
//! use std::process::Command;
//!
//! use modload::{Host, Image};
//!
//! # #[cfg(feature = "process-symbols")]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // A plugin, compiled without any special option.
//!     let dir = tempfile::tempdir()?;
//!     let (source, object) = (dir.path().join("adder.c"), dir.path().join("adder.o"));
//!     std::fs::write(&source, "int add(int a, int b) { return a + b; }")?;
//!     assert!(Command::new("cc").args(["-O2", "-c", "-o"]).arg(&object).arg(&source).status()?.success());
//!
//!     // A host loads the plugin, calls a function of it, and unloads it.
//!     let host = Host::builder().process_symbols().build()?;
//!     // SAFETY: the plugin is the code above.
//!     let adder = host.load(&unsafe { Image::trusted(std::fs::read(&object)?) }.named("adder"))?;
//!     // SAFETY: this is the type of the function above.
//!     let add = unsafe { adder.symbol::<extern "C" fn(i32, i32) -> i32>("add")? };
//!     assert_eq!(add(2, 3), 5);
//!     adder.unload()?;
//!     assert!(host.modules().is_empty());
//!     Ok(())
//! }
//! # #[cfg(not(feature = "process-symbols"))]
//! # fn main() {}
//! ```
//!
//! The types that most programs need are at the root:
//!
//! - [`Host`], [`HostBuilder`]: holds modules; exports symbols to modules; decides which modules may load.
//! - [`Image`]: the bytes of a module whose author is trusted, its name and its parameters.
//! - [`Module`]: a counted reference to a loaded module. The module stays loaded while such a reference exists.
//! - [`Symbol`]: a typed function or variable of a module. It borrows the [`Module`], and so cannot outlive the module.
//! - [`Subscriber`], [`Order`]: is called when modules come and go, in an order that the subscriber chooses; can refuse a module.
//! - [`LoadError`], [`UnloadError`]: which module, which stage, which section and symbol, and the way out.
//! - [`process()`]: settings of the process that all hosts share.
//!
//! The others are in modules, by purpose:
//!
//! | module | contents |
//! |---|---|
//! | [`module`] | functions, sections and parameters of a loaded module, and the threads inside it |
//! | [`error`] | parts of errors |
//! | [`mod@file`] | reads module files, compressed ones too |
//! | [`inspect`] | contents of module files; the modules of a folder and their load order |
//! | [`timeline`] | events in order, without addresses and times, for snapshot tests |
//! | [`text`] | code memory, and how a subscriber changes code before it is published |
//! | [`keys`] | static keys and static calls of the host |
//! | [`trace`] | function tracing, as Linux's ftrace |
//! | [`patch`] | live patching, as Linux's |
//! | [`image`] | the bytes of a module in the memory of another machine |
//!
//! Running foreign code is unsafe, in two places: [`Image::trusted`] and [`Module::symbol`] (with their variants
//! [`read_trusted`] and [`Module::call`], and [`Trust`] for both). The other unsafe functions are promises about code of
//! the host: [`trace::Redirecting::new`], [`trace::HostFunction::new`], [`keys::set_static_call`] and
//! [`HostBuilder::unload_unseen`]. All other functions are safe.
//!
//! Modules written with the SDK (`sdk/include/modload/module.h`) may call `register_module_notifier`, which every host
//! exports.

#![deny(unsafe_code)]

mod backtrace;
mod builder;
mod built_in;
mod c_api;
#[cfg(feature = "process-symbols")]
mod c_library;
#[cfg(feature = "inspect")]
mod catalog;
#[cfg(feature = "debuggers")]
mod debugger;
pub mod error;
pub mod file;
mod foreign;
mod host;
#[cfg(feature = "inspect")]
pub mod image;
#[cfg(feature = "inspect")]
pub mod inspect;
#[cfg(feature = "debuggers")]
mod jit_list;
#[cfg(feature = "keys")]
pub mod keys;
#[cfg(feature = "process-symbols")]
mod libraries;
pub mod module;
#[cfg(feature = "debuggers")]
mod onlookers;
mod own_symbols;
#[cfg(feature = "livepatch")]
pub mod patch;
#[cfg(feature = "livepatch")]
mod patch_c_api;
#[cfg(feature = "debuggers")]
mod perf_map;
mod process;
#[cfg(feature = "process-symbols")]
mod process_symbols;
#[cfg(feature = "debuggers")]
mod symbol_file;
pub mod text;
pub mod timeline;
#[cfg(feature = "trace")]
pub mod trace;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use backtrace::Backtrace;
pub use builder::{Export, HostBuilder};
pub use foreign::{Module, Symbol, SymbolError, Trust, read_trusted};
pub use host::{Host, WeakHost};
pub use modload_alternatives::Features;
pub use modload_loader::{
    BUILTIN, Check, Coming, Error, Image, Input, LoadError, Membership, Module as ModuleInfo, Order, Refusal, Rule,
    Stage, State, Subscriber, UnloadError,
};
pub use process::{Process, process};
