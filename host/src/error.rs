//! Errors that several parts of this crate return, and the parts of errors.

pub use modload_alternatives::UnknownFeature;
pub use modload_loader::{
    LeftBy, ObjectError, ParamError, PrepareError, RegistryError, SetParamError, Unresolved, sentence,
};
pub use modload_text::ArenaError;
pub use modload_threads::Error as SignalError;
pub use modload_threads::boundary::{Exception, Thrown};
pub use modload_threads::frames::{Ended, WalkError};

pub use crate::builder::OtherCpu;
#[cfg(feature = "debuggers")]
pub use crate::perf_map::PerfMapError;
