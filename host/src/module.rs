//! What a loaded module consists of, and which threads are in it.

pub use modload_abi::modinfo::is_same_name;
pub use modload_loader::{FunctionSymbol, ModuleSymbolKind, Occupant, Occupies, ParamInfo, ParamType, SectionInfo};

pub use crate::backtrace::BacktraceFrame;
