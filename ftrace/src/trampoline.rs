//! The trampolines: assembler code that traced calls run through, and the data that it shares with Rust. The only place
//! of this crate with unsafe code.
//!
//! A traced function has a [`FunctionRecord`], which lives for ever, and a *stub* near its code. The stub has two
//! halves of sixteen bytes. Each half loads the address of the [`FunctionRecord`] into `r11` and jumps on through it.
//! The function's site calls the first half, or jumps to the second:
//!
//! | the site | the stub leads to | the stack then |
//! |---|---|---|
//! | `call stub` | [`FunctionRecord::on_call`] | the address at which the function continues; its return address |
//! | `jmp stub+16` | [`FunctionRecord::on_jump`] | its return address |
//!
//! Each half has its own meaning, so a thread that is late in a half finds the code that fits its stack, regardless of
//! the code that the site has by now. Calls end with `ret`, so that returns match the processor's own return stack. If
//! a function's return is recorded, its site jumps, because the trampoline itself then calls the function ([`graph`]).
//!
//! - [`sets`]: calls the tracers of a function. Registers that may hold arguments are saved.
//! - [`record`]: writes a call into the thread's ring.
//! - [`graph`]: writes entry and return. The trampoline has a frame of its own beneath the function's frame, with
//!   unwind rows for exceptions.
//! - [`walk_stack`]: walks the thread's current stack while running on another stack.
//! - [`mod@thread_local`]: whether the thread is within the tracing already, and the way to its state. [`thread`]: the
//!   state: its ring ([`ring`], [`reader`]) and its return stack ([`return_stack`]).
//! - [`slow_path`]: the calls that assembler code cannot record by itself. [`attach`]: threads join a recording.
//!
//! Only `r11` is free at a function's entry (psABI, figure 3.4): it belongs to PLTs. Everything else that may hold an
//! argument is preserved: general registers, `al`, the static chain, and vector registers 0 to 7 in the requested
//! width.
#![expect(unsafe_code, reason = "code that stands between a caller and a function has no type")]

// Reading order: a file imports only from the files before it, and from `x86_64`.
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
pub(crate) mod variants;
mod function;
pub(crate) mod process_state;
pub(crate) mod ring;
mod thread;
pub(crate) mod thread_local;
pub(crate) mod walk_stack;
mod stack;
mod return_stack;
pub(crate) mod reader;
pub(crate) mod event_hook;
pub(crate) mod event;
pub(crate) mod attach;
pub(crate) mod slow_path;
pub(crate) mod call;
pub(crate) mod host;

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

pub(crate) use function::FunctionRecord;
pub use x86_64::{CallRegisters, event_code};
pub(crate) use x86_64::{STUB, second_half, stub_rows};

use variants::{AfterTracers, SavedRegisters, SiteBranch, VectorWidth};
use x86_64::{graph, record, sets};

impl FunctionRecord {
    /// Makes a function that is not traced. The value lives for ever.
    pub(crate) fn make(number: u32, module: Arc<str>, name: Arc<str>) -> &'static FunctionRecord {
        Box::leak(Box::new(FunctionRecord {
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

    /// Sets the code that one half of the stub leads to from now on: the tracers, and the code after them.
    pub(crate) fn set_code(&self, by: SiteBranch, tracers: Option<(VectorWidth, SavedRegisters)>, then: AfterTracers) {
        let code = match (tracers, then, by) {
            // The return of a function cannot be recorded if its site calls.
            (_, AfterTracers::Graph, SiteBranch::Call) => graph::pass_call(),
            (Some((width, saved)), ..) => sets::code(width, saved, then, by),
            (None, AfterTracers::Function, SiteBranch::Call) => graph::pass_call(),
            (None, AfterTracers::Function, SiteBranch::Jump) => graph::pass_jump(),
            (None, AfterTracers::Record, _) => record::code(by),
            (None, AfterTracers::Graph, SiteBranch::Jump) => graph::code(),
        };
        let half = match by {
            SiteBranch::Call => &self.on_call,
            SiteBranch::Jump => &self.on_jump,
        };
        half.store(code.get(), Ordering::Release);
    }

    /// Stops tracing the function in both halves of its stub.
    pub(crate) fn stop_tracing(&self) {
        self.stop_tracing_half(SiteBranch::Call);
        self.stop_tracing_half(SiteBranch::Jump);
    }

    /// Stops tracing the function in one half of its stub.
    pub(crate) fn stop_tracing_half(&self, by: SiteBranch) {
        self.set_code(by, None, AfterTracers::Function);
    }
}
