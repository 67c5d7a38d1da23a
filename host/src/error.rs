//! Errors that several parts of this crate return, and the parts of errors.
//!
//! ```
//! use modload::error::{PrepareError, sentence};
//! use modload::{Error, Host, Image};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // `object` is the compiled form of: int mising(void); int call(void) { return mising(); }
//! # let object = modload_fixtures::c_object("int mising(void); int call(void) { return mising(); }")?;
//! extern "C" fn missing() -> i32 { 42 }
//! let host = Host::builder().export("missing", missing as extern "C" fn() -> i32 as *const ()).build()?;
//! // SAFETY: the object is the code above.
//! let refused = host.load(&unsafe { Image::trusted(object) }.named("caller")).unwrap_err();
//!
//! // For programs: which module, which stage, which error with which fields.
//! assert_eq!(refused.module, "caller");
//! let Error::Prepare(PrepareError::Unresolved(symbols)) = &*refused.error else { panic!("{refused:?}") };
//! assert_eq!(symbols[0].symbol, "mising");
//! // For people: one sentence with all causes.
//! println!("{}", sentence(&refused));
//! # Ok(())
//! # }
//! ```

pub use modload_alternatives::UnknownFeature;
pub use modload_loader::{
    LeftBy, ObjectError, ParamError, PrepareError, RegistryError, SetParamError, Unresolved, sentence,
};
pub use modload_text::{AnnexError, ArenaError, HostTextError, OutOfMemory, PublishFailed, WriteFailed};
pub use modload_threads::Error as SignalError;
pub use modload_threads::boundary::{Exception, Thrown};
pub use modload_threads::frames::{BadRows, Ended, NoFinder, WalkError};

pub use crate::builder::OtherCpu;
#[cfg(feature = "debuggers")]
pub use crate::perf_map::PerfMapError;
