//! The identities of hosts, of owners of functions, and of tracers.

use std::sync::atomic::{AtomicU64, Ordering};

use modload_loader::Module;

/// The identity of a host, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct HostId(u64);

impl HostId {
    pub(crate) fn new() -> HostId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        HostId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The owner of functions: a module, by its address while the module exists, or a host with its own functions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Owner {
    Module(usize),
    Host(HostId),
}

impl Owner {
    pub(crate) fn of(module: &Module) -> Owner {
        Owner::Module(std::ptr::from_ref(module).addr())
    }
}

/// The identity of a tracer, unique in the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TracerId(pub(crate) u64);
