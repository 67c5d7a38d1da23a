//! The trampolines: assembler code that traced calls run through, and the data that it shares with Rust. The only place
//! of this crate with unsafe code.
//!
//! A traced function has a [`Function`], which lives for ever, and a *stub* near its code. The stub has two halves of
//! sixteen bytes. Each half loads the address of the [`Function`] into `r11` and jumps on through it. The function's
//! site calls the first half, or jumps to the second:
//!
//! | the site | the stub leads to | the stack then |
//! |---|---|---|
//! | `call stub` | [`Function::on_call`] | the address at which the function continues; its return address |
//! | `jmp stub+16` | [`Function::on_jump`] | its return address |
//!
//! Each half has its own meaning, so a thread that is late in a half finds the code that fits its stack, regardless of
//! the code that the site has by now. Calls end with `ret`, so that returns match the processor's own return stack. If
//! a function's return is recorded, its site jumps, because the trampoline itself then calls the function ([`graph`]).
//!
//! - [`sets`]: calls the tracers of a function. Registers that may hold arguments are saved.
//! - [`record`]: writes a call into the thread's ring.
//! - [`graph`]: writes entry and return. The trampoline has a frame of its own beneath the function's frame, with
//!   unwind rows for exceptions.
//! - [`aside`]: walks the thread's current stack while running on another stack.
//! - [`thread`]: the state of a thread: its ring, its return stack, and whether the thread is within the tracing
//!   already.
//!
//! Only `r11` is free at a function's entry (psABI, figure 3.4): it belongs to PLTs. Everything else that may hold an
//! argument is preserved: general registers, `al`, the static chain, and vector registers 0 to 7 in the requested
//! width.
#![expect(unsafe_code, reason = "code that stands between a caller and a function has no type")]

pub(crate) mod aside;
pub(crate) mod call;
pub(crate) mod event;
pub(crate) mod graph;
pub(crate) mod host;
pub(crate) mod record;
pub(crate) mod ring;
pub(crate) mod sets;
mod stack;
pub(crate) mod thread;

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use modload_edit::{Addr, wide};

use sets::{By, Saved, Set, Then};

/// The data of a function that is or was traced. Assembler code reads the first fields. Each of them changes only by a
/// single store, and any mixture of old and new values is valid.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Function {
    /// The code that the first half of the stub leads to.
    on_call: AtomicU64,
    /// The code that the second half leads to.
    on_jump: AtomicU64,
    /// The address at which the function continues behind its site.
    target: AtomicU64,
    /// The function's tracers, or null.
    set: AtomicPtr<Set>,
    /// The function's number in records.
    pub(crate) number: u32,
    /// The function's stub, or 0 before it has one.
    stub: AtomicU64,
    /// The function's entry.
    ip: AtomicU64,
    pub(crate) module: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// The width of the vector registers in which functions may have arguments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Width {
    /// 128 bits.
    Xmm,
    /// 256 bits.
    Ymm,
    /// 512 bits.
    Zmm,
}

impl Width {
    /// Returns the largest width of this machine.
    pub(crate) fn of_this_machine() -> Width {
        if std::arch::is_x86_feature_detected!("avx512f") {
            Width::Zmm
        } else if std::arch::is_x86_feature_detected!("avx") {
            Width::Ymm
        } else {
            Width::Xmm
        }
    }
}

/// The size in bytes of a stub, and of a half.
pub(crate) const STUB: u64 = 32;
const HALF: u64 = STUB / 2;

impl Function {
    /// Makes a function that is not traced. The value lives for ever.
    pub(crate) fn make(number: u32, module: Arc<str>, name: Arc<str>) -> &'static Function {
        Box::leak(Box::new(Function {
            on_call: AtomicU64::new(graph::pass_call().get()),
            on_jump: AtomicU64::new(graph::pass_jump().get()),
            target: AtomicU64::new(0),
            set: AtomicPtr::default(),
            number,
            stub: AtomicU64::new(0),
            ip: AtomicU64::new(0),
            module,
            name,
        }))
    }

    /// Sets the function's entry, and the address at which it continues behind its site.
    pub(crate) fn stands(&self, ip: Addr, target: Addr) {
        self.ip.store(ip.get(), Ordering::Relaxed);
        self.target.store(target.get(), Ordering::Release);
    }

    /// Sets the address at which the function continues, behind its site or elsewhere. May be called while threads are
    /// held.
    pub(crate) fn goes_on(&self, target: Addr) {
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
    pub(crate) fn has_stub(&self, at: Addr) {
        self.stub.store(at.get(), Ordering::Relaxed);
    }

    /// Returns the bytes of the function's stub.
    pub(crate) fn stub_code(&'static self) -> [u8; 32] {
        let mut code = [modload_text::INT3; 32];
        let address = wide(std::ptr::from_ref(self).expose_provenance()).to_le_bytes();
        for (half, entry) in code.chunks_mut(16).zip([offset_of!(Function, on_call), offset_of!(Function, on_jump)]) {
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
    pub(crate) fn set(&self, set: *const Set) {
        self.set.store(set.cast_mut(), Ordering::Release);
    }

    /// Sets the code that one half of the stub leads to from now on: the tracers, and the code after them.
    pub(crate) fn leads(&self, by: By, tracers: Option<(Width, Saved)>, then: Then) {
        let code = match (tracers, then, by) {
            // The return of a function cannot be recorded if its site calls.
            (_, Then::Graph, By::Call) => graph::pass_call(),
            (Some((width, saved)), ..) => sets::code(width, saved, then, by),
            (None, Then::Function, By::Call) => graph::pass_call(),
            (None, Then::Function, By::Jump) => graph::pass_jump(),
            (None, Then::Record, _) => record::code(by),
            (None, Then::Graph, By::Jump) => graph::code(),
        };
        let half = match by {
            By::Call => &self.on_call,
            By::Jump => &self.on_jump,
        };
        half.store(code.get(), Ordering::Release);
    }

    /// Stops tracing the function in both halves of its stub.
    pub(crate) fn is_passed(&self) {
        self.passes(By::Call);
        self.passes(By::Jump);
    }

    /// Stops tracing the function in one half of its stub.
    pub(crate) fn passes(&self, by: By) {
        self.leads(by, None, Then::Function);
    }
}

/// Returns the address of the second half of a stub.
pub(crate) fn jumped(stub: Addr) -> Addr {
    stub + HALF
}

/// Returns the unwind rows of stubs that lie side by side from an address that is a multiple of [`STUB`], as call frame
/// instructions. A thread in a stub continues at the function's target. In the first half, which sites call, that
/// address is on the stack already.
pub(crate) fn stub_rows() -> Vec<u8> {
    // rsp + 8 - ((rip & 16) >> 1)
    let cfa = [0x77, 8, 0x80, 0, 0x08, 16, 0x1a, 0x31, 0x25, 0x1c];
    // *((rip & -32) + 2) + target
    let target = offset_of!(Function, target).to_le_bytes()[0];
    let rip = [0x80, 0, 0x09, 0xe0, 0x1a, 0x23, 2, 0x06, 0x23, target];
    let len = |bytes: &[u8]| bytes.len().to_le_bytes()[0];
    // DW_CFA_def_cfa_expression; DW_CFA_expression of rip.
    [&[0x0f, len(&cfa)][..], &cfa, &[0x10, 16, len(&rip)], &rip].concat()
}
