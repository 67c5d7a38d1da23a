//! The errors that are not of one part of this crate alone, and what they are made of.

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
