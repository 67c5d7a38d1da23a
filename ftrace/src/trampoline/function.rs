//! The data of traced functions that assembler code reads: a function, and the set of its tracers.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::Addr;

use super::x86_64::CallRegisters;

/// The data of a function that is or was traced. Assembler code reads the first fields. Each of them changes only by a
/// single store, and any mixture of old and new values is valid.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct FunctionRecord {
    /// The code that the first half of the stub leads to.
    pub(super) on_call: AtomicU64,
    /// The code that the second half leads to.
    pub(super) on_jump: AtomicU64,
    /// The address at which the function continues behind its site.
    pub(super) target: AtomicU64,
    /// The function's tracers, or null.
    pub(super) set: AtomicPtr<TracerSet>,
    /// The function's number in records.
    pub(crate) number: u32,
    /// The function's stub, or 0 before it has one.
    pub(super) stub: AtomicU64,
    /// The function's entry.
    pub(super) ip: AtomicU64,
    pub(crate) module: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// The function that a set calls, with the set's word, the traced function, the call's origin, and the registers (null
/// if they were not requested). The callback returns the address at which the traced function continues, or 0 to leave
/// that unchanged.
pub(crate) type Callback =
    unsafe extern "C-unwind" fn(*const c_void, *const FunctionRecord, u64, *const CallRegisters) -> u64;

/// A set: the callback for the calls of a function. The code below reads the first two fields.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct TracerSet {
    pub(super) call: Callback,
    pub(super) data: *const c_void,
}

impl TracerSet {
    pub(crate) const fn new(call: Callback, data: *const c_void) -> TracerSet {
        TracerSet { call, data }
    }
}

impl FunctionRecord {
    /// Sets the function's entry, and the address at which it continues behind its site.
    pub(crate) fn set_entry(&self, ip: Addr, target: Addr) {
        self.ip.store(ip.get(), Ordering::Relaxed);
        self.target.store(target.get(), Ordering::Release);
    }

    /// Sets the address at which the function continues, behind its site or elsewhere. May be called while threads are
    /// held.
    pub(crate) fn set_target(&self, target: Addr) {
        self.target.store(target.get(), Ordering::Release);
    }

    /// Returns the function's entry.
    pub(crate) fn ip(&self) -> Addr {
        Addr::new(self.ip.load(Ordering::Relaxed))
    }

    /// Returns the function's stub, if it has one.
    pub(crate) fn stub(&self) -> Option<Addr> {
        Some(Addr::new(self.stub.load(Ordering::Relaxed))).filter(|stub| *stub != Addr::NULL)
    }

    /// Sets the address of the function's stub.
    pub(crate) fn set_stub(&self, at: Addr) {
        self.stub.store(at.get(), Ordering::Relaxed);
    }

    /// Sets the function's tracers from now on. The former tracers may still be running.
    pub(crate) fn set_tracers(&self, set: *const TracerSet) {
        self.set.store(set.cast_mut(), Ordering::Release);
    }
}

/// Returns the address of a piece of code.
pub(super) fn address(code: *const u8) -> Addr {
    Addr::new(modload_edit::wide(code.expose_provenance()))
}
