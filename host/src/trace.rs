//! Function tracing, as Linux's ftrace: which functions of modules are called, by which thread, and when.
//!
//! ```
//! use modload::trace::{Mode, TraceOptions};
//! use modload::{Host, Image};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // `object` is compiled with -fpatchable-function-entry=5 from: int add(int a, int b) { return a + b; }
//! # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
//! # let host = Host::builder().build()?;
//! # // SAFETY: the object is the code above.
//! # let adder = host.load(&unsafe { Image::trusted(object) }.named("adder"))?;
//! let trace = host.trace_functions(&TraceOptions::new(Mode::Graph).pattern("adder:*")?)?;
//! // SAFETY: `add` takes two integers.
//! unsafe { adder.call("add", &[2, 3])? };
//! let batch = trace.finish();
//! assert_eq!(batch.functions[0].name, "add");
//! // One entry and one return.
//! assert_eq!(batch.records.len(), 2);
//! # Ok(())
//! # }
//! ```

use modload_edit::Addr;
pub use modload_ftrace::trace::{Batch, Missed, Record, RecordedThread, ThreadAction, TracedFunction};
pub use modload_ftrace::{
    BadPattern, Call, CallRegisters, Filter, FunctionTrace, HostFunction, Mode, Pattern, Redirect, Redirecting,
    TraceError, TraceOptions, Traceable, Tracer, Tracing, render,
};

use crate::host::Host;

/// Tracing.
impl Host {
    /// Calls a tracer for every call of the functions that match a filter, in all threads: functions of loaded modules,
    /// and of modules that are loaded later. `docs/tracing.md` says how modules must be compiled.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.built_in.ftrace.trace(filter, tracer)
    }

    /// Like [`Host::trace`], with all general registers.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace_with_registers(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.built_in.ftrace.trace_with_registers(filter, tracer)
    }

    /// Redirects calls of functions to other code. [`modload_ftrace::Redirecting`] is the promise that this is valid.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::Redirected`] if the calls are redirected already.
    pub fn redirect(&self, filter: Filter, redirecting: Redirecting) -> Result<Tracing, TraceError> {
        self.inner.built_in.ftrace.redirect(filter, redirecting)
    }

    /// Records calls, or entries and returns, of functions of this host's modules in all threads, until the returned
    /// value is dropped.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::UnderWay`] if another recording exists in the process: only one is possible.
    pub fn trace_functions(&self, options: &TraceOptions) -> Result<FunctionTrace, TraceError> {
        let host = self.downgrade();
        let name = move |at: Addr| {
            // No handle: the last of them may not be dropped by who reads.
            let inner = host.inner.upgrade()?;
            inner.loader.module_at(at.offset(-1))?.describe_return(at)
        };
        self.inner.built_in.ftrace.record(options, name)
    }

    /// Makes functions of the host itself traceable, as functions of a module `vmlinux`. Can be called once per host.
    ///
    /// # Errors
    /// [`TraceError`]. A function that cannot be traced is not an error: [`Host::traceable`] lists it with the reason.
    pub fn register_host_functions(&self, functions: Vec<HostFunction>) -> Result<(), TraceError> {
        self.inner.built_in.ftrace.register_host_functions(functions)
    }

    /// Returns the functions of all modules compiled for tracing: those that can be traced, and those that cannot, with
    /// the reason.
    #[must_use]
    pub fn traceable(&self) -> Vec<Traceable> {
        self.inner.built_in.ftrace.traceable()
    }
}
