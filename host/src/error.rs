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

pub use modload_abi::crel::CrelError;
pub use modload_alternatives::{RewriteProblem, UnknownFeature};
pub use modload_loader::{
    CannotLook, DeferredError, LeftBy, LookError, ObjectError, ParamError, PrepareError, RegistryError,
    RelocationAdvice, SetParamError, Unresolved, sentence,
};
pub use modload_relocs::{Reason as RelocRefusal, RelocAdvice, RelocError, RelocProblem, RelocSite};
pub use modload_text::{AnnexError, ArenaError, HostTextError, OutOfMemory, PublishFailed, WriteFailed};
pub use modload_threads::boundary::{Exception, Thrown};
pub use modload_threads::frames::{
    BadRows, Ended, Flaw, Malformed, NoFinder, Overlap, Register, StartsUnknown, WalkError,
};
pub use modload_threads::{
    Disposition, Error as SignalError, Name as ThreadName, Straggler, StragglerReason, Stragglers, ThreadState,
};

pub use crate::builder::OtherCpu;
#[cfg(feature = "process-symbols")]
pub use crate::libraries::LibraryError;
#[cfg(feature = "debuggers")]
pub use crate::perf_map::PerfMapError;
