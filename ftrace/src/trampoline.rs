//! What a traced call runs through: code of ours in assembler, and what it shares with Rust. The one place of this crate with
//! unsafe code.
//!
//! A traced function has a [`Function`], which lives for ever, and a *stub* near its code: two halves of sixteen bytes, each of which
//! loads the address of the [`Function`] into `r11` and jumps on through it. Its site calls the first half, or jumps to the second:
//!
//! | the site | the stub leads to | the stack then |
//! |---|---|---|
//! | `call stub` | [`Function::on_call`] | where the function goes on; its return address |
//! | `jmp stub+16` | [`Function::on_jump`] | its return address |
//!
//! Each half has a meaning of its own, so that a thread that is late on one of them finds what fits its stack, whatever the
//! site has become. Calls end with `ret`, so that returns find the processor's own return stack in order; a function whose
//! return is wanted is jumped from, because its frame is then called by us ([`graph`]).
//!
//! - [`sets`]: calls the tracers of a function, with the registers that it may have arguments in saved.
//! - [`record`]: writes a call into the thread's ring.
//! - [`graph`]: writes entry and return; has a frame of its own beneath the function's, by whose rows exceptions pass.
//! - [`aside`]: walks of the stack that a thread is on, made on another one.
//! - [`thread`]: the state of a thread: its ring, its return stack, and whether it is within all this already.
//!
//! `r11` alone is free at a function's entry (psABI, figure 3.4): it belongs to PLTs. All else that may hold an argument is
//! preserved: general registers, `al`, the static chain, and vector registers 0 to 7 in the width that is asked for.
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

/// What a function that is or was traced is known by. Code in assembler reads the first fields; none of them changes but by
/// one store, and any mixture of old and new ones is right.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Function {
    /// Where the first half of the stub leads.
    on_call: AtomicU64,
    /// Where the second half leads.
    on_jump: AtomicU64,
    /// Where the function goes on behind its site.
    target: AtomicU64,
    /// Its tracers, or null.
    set: AtomicPtr<Set>,
    /// What records name it by.
    pub(crate) number: u32,
    /// Its stub; 0 until it has one.
    stub: AtomicU64,
    /// Its entry.
    ip: AtomicU64,
    pub(crate) module: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// How wide the vector registers are in which functions may have arguments.
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
    /// The widest that this machine has.
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

/// Bytes of a stub, and of a half.
pub(crate) const STUB: u64 = 32;
const HALF: u64 = STUB / 2;

impl Function {
    /// A function that nobody looks at, for ever.
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

    /// Where it is: its entry, and where it goes on behind its site.
    pub(crate) fn stands(&self, ip: Addr, target: Addr) {
        self.ip.store(ip.get(), Ordering::Relaxed);
        self.target.store(target.get(), Ordering::Release);
    }

    /// Where it goes on behind its site, or instead. May be called while threads are held.
    pub(crate) fn goes_on(&self, target: Addr) {
        self.target.store(target.get(), Ordering::Release);
    }

    /// Its entry.
    pub(crate) fn ip(&self) -> Addr {
        Addr::new(self.ip.load(Ordering::Relaxed))
    }

    /// Its stub, if it has one.
    pub(crate) fn stub(&self) -> Option<Addr> {
        Some(Addr::new(self.stub.load(Ordering::Relaxed))).filter(|stub| *stub != Addr::NULL)
    }

    /// Where its stub is.
    pub(crate) fn has_stub(&self, at: Addr) {
        self.stub.store(at.get(), Ordering::Relaxed);
    }

    /// The bytes of its stub.
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

    /// Its tracers from now on. Those before may still be running.
    pub(crate) fn set(&self, set: *const Set) {
        self.set.store(set.cast_mut(), Ordering::Release);
    }

    /// What those who come by one half of its stub run through from now on: its tracers, and what comes then.
    pub(crate) fn leads(&self, by: By, tracers: Option<(Width, Saved)>, then: Then) {
        let code = match (tracers, then, by) {
            // A site that calls cannot be returned to.
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

    /// Nobody looks at it any more, however they come.
    pub(crate) fn is_passed(&self) {
        self.passes(By::Call);
        self.passes(By::Jump);
    }

    /// Those who come by one half look at nothing any more.
    pub(crate) fn passes(&self, by: By) {
        self.leads(by, None, Then::Function);
    }
}

/// Where the second half of a stub begins.
pub(crate) fn jumped(stub: Addr) -> Addr {
    stub + HALF
}

/// Rows of stubs that stand side by side from an address that is a multiple of [`STUB`], as call frame instructions: whoever is
/// in one goes on at the function's target. Of those who have called, the first half's, that stands on the stack already.
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
