//! The parts of a loaded module, and the threads inside a module.
//!
//! ```
//! use modload::{Host, Image};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // `object` is the compiled form of: static int add(int a, int b) .. and of its user.
//! # let object = modload_fixtures::c_object("__attribute__((noinline)) static int add(int a, int b) { return a + b; } int twice(int a) { return add(a, a); }")?;
//! # let host = Host::builder().build()?;
//! # // SAFETY: the object is two functions that add.
//! # let module = host.load(&unsafe { Image::trusted(object) }.named("adder"))?;
//! let functions: Vec<String> = module.functions().into_iter().map(|function| function.name).collect();
//! assert!(functions.contains(&"add".to_owned()), "{functions:?}");
//! let text = module.sections().find(|section| section.name == ".text").map(|section| section.size);
//! assert!(text > Some(0));
//! # Ok(())
//! # }
//! ```

pub use modload_abi::modinfo::is_same_name;
pub use modload_loader::{
    FunctionSymbol, Integer, ModuleSymbol, ModuleSymbolKind, Occupant, Occupies, ParamInfo, ParamType, Rank, Reference,
    SectionInfo, Slice, SlicePlan, Slices, WantedSymbol,
};
pub use modload_threads::creation::Creator;

pub use crate::backtrace::BacktraceFrame;
