//! Function tracing, as Linux's ftrace: which functions of modules are called, by which thread, and when.

use modload_edit::Addr;
pub use modload_ftrace::trace::{Batch, Function, Missed, Record, Thread, What};
pub use modload_ftrace::{
    BadPattern, Call, Filter, FunctionTrace, HostFunction, Mode, Pattern, Redirect, Redirecting, Registers, TraceError,
    TraceOptions, Traceable, Tracer, Tracing, render,
};

use crate::host::Host;

/// Tracing.
impl Host {
    /// Has a tracer hear of all calls of the functions that a filter means, in all threads: of modules that are there, and of
    /// those that are loaded while it is in force. `docs/tracing.md` says how modules are compiled for it.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.built_in.ftrace.trace(filter, tracer)
    }

    /// [`Host::trace`], with all general registers.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn trace_with_registers(&self, filter: Filter, tracer: impl Tracer) -> Result<Tracing, TraceError> {
        self.inner.built_in.ftrace.trace_with_registers(filter, tracer)
    }

    /// Has calls of functions go on elsewhere: [`modload_ftrace::Redirecting`] promises that they may.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::Redirected`]: by somebody else already.
    pub fn redirect(&self, filter: Filter, redirecting: Redirecting) -> Result<Tracing, TraceError> {
        self.inner.built_in.ftrace.redirect(filter, redirecting)
    }

    /// Records calls, or entries and returns, of functions of its modules in all threads, until what this returns is dropped.
    ///
    /// # Errors
    /// [`TraceError`]; [`TraceError::UnderWay`]: there is one recording at a time in a process.
    pub fn trace_functions(&self, options: &TraceOptions) -> Result<FunctionTrace, TraceError> {
        let host = self.downgrade();
        let name = move |at: Addr| {
            // No handle: the last of them may not be dropped by who reads.
            let inner = host.inner.upgrade()?;
            inner.loader.module_at(at.offset(-1))?.describe_return(at)
        };
        self.inner.built_in.ftrace.record(options, name)
    }

    /// Makes functions of the host's own traceable, as those of a module `vmlinux`: once for each host.
    ///
    /// # Errors
    /// [`TraceError`]. A function that cannot be traced is no error: [`Host::traceable`] lists it with the reason.
    pub fn register_host_functions(&self, functions: Vec<HostFunction>) -> Result<(), TraceError> {
        self.inner.built_in.ftrace.register_host_functions(functions)
    }

    /// The functions that can be traced, and those that cannot and why, of all modules that are compiled for it.
    #[must_use]
    pub fn traceable(&self) -> Vec<Traceable> {
        self.inner.built_in.ftrace.traceable()
    }
}
