//! The data of traced functions that assembler code reads: a function, and the set of its tracers.

use std::ffi::c_void;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::{Addr, wide};

use super::registers::CallRegisters;

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

/// The size in bytes of a stub, and of a half.
pub(crate) const STUB: u64 = 32;
const HALF: u64 = STUB / 2;

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

    /// Returns the bytes of the function's stub.
    pub(crate) fn stub_code(&'static self) -> [u8; 32] {
        let mut code = [modload_text::INT3; 32];
        let address = wide(std::ptr::from_ref(self).expose_provenance()).to_le_bytes();
        for (half, entry) in
            code.chunks_mut(16).zip([offset_of!(FunctionRecord, on_call), offset_of!(FunctionRecord, on_jump)])
        {
            // movabs $self,%r11
            half[..2].copy_from_slice(&[0x49, 0xbb]);
            half[2..10].copy_from_slice(&address);
            // jmp *entry(%r11)
            half[10..13].copy_from_slice(&[0x41, 0xff, 0x63]);
            half[13] = entry.to_le_bytes()[0];
        }
        code
    }

    /// Sets the function's tracers from now on. The former tracers may still be running.
    pub(crate) fn set_tracers(&self, set: *const TracerSet) {
        self.set.store(set.cast_mut(), Ordering::Release);
    }
}

/// Returns the address of the second half of a stub.
pub(crate) fn second_half(stub: Addr) -> Addr {
    stub + HALF
}

/// Returns the unwind rows of stubs that lie side by side from an address that is a multiple of [`STUB`], as call frame
/// instructions. A thread in a stub continues at the function's target. In the first half, which sites call, that
/// address is on the stack already.
pub(crate) fn stub_rows() -> Vec<u8> {
    // rsp + 8 - ((rip & 16) >> 1)
    let cfa = [0x77, 8, 0x80, 0, 0x08, 16, 0x1a, 0x31, 0x25, 0x1c];
    // *((rip & -32) + 2) + target
    let target = offset_of!(FunctionRecord, target).to_le_bytes()[0];
    let rip = [0x80, 0, 0x09, 0xe0, 0x1a, 0x23, 2, 0x06, 0x23, target];
    let len = |bytes: &[u8]| bytes.len().to_le_bytes()[0];
    // DW_CFA_def_cfa_expression; DW_CFA_expression of rip.
    [&[0x0f, len(&cfa)][..], &cfa, &[0x10, 16, len(&rip)], &rip].concat()
}

/// Returns the address of a piece of code.
pub(super) fn address(code: *const u8) -> Addr {
    Addr::new(modload_edit::wide(code.expose_provenance()))
}
