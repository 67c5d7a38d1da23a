//! The identities of hosts, of owners of functions, and of tracers.

use std::sync::atomic::{AtomicU64, Ordering};

use modload_loader::Module;

/// The identity of a host, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TraceHostId(u64);

impl TraceHostId {
    pub(crate) fn new() -> TraceHostId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        TraceHostId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The owner of functions: a module, by its address while the module exists, or a host with its own functions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum FunctionOwner {
    Module(usize),
    Host(TraceHostId),
}

impl FunctionOwner {
    pub(crate) fn of(module: &Module) -> FunctionOwner {
        FunctionOwner::Module(std::ptr::from_ref(module).addr())
    }
}

/// The identity of a tracer, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TracerId(pub(crate) u64);
