//! The parts of a loaded module, and the threads inside a module.

pub use modload_abi::modinfo::is_same_name;
pub use modload_loader::{FunctionSymbol, ModuleSymbolKind, Occupant, Occupies, ParamInfo, ParamType, SectionInfo};

pub use crate::backtrace::BacktraceFrame;
