//! What a loaded module consists of, and which threads are in it.

pub use modload_abi::modinfo::is_same_name;
pub use modload_loader::{FunctionSymbol, Occupant, Occupies, ParamInfo, ParamType, SectionInfo, SymbolKind};

pub use crate::backtrace::BacktraceFrame;
