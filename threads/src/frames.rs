//! Frames of a stack, found by call frame information alone.
//!
//! - [`walk`]: from the registers of a thread to its outermost frame, caller by caller. A frame without a row, a frame
//!   that is not above the one it has called, a stack that cannot be read: each is an error that says where. There is
//!   no heuristic to fall back on, because who asks decides by the answer whether code may be freed.
//! - [`plan`], [`Planned`], [`Known`]: a module's `.eh_frame`, checked and indexed before anybody needs it, and the guard
//!   that keeps its rows known, to walks and to the process's own unwinder, by which exceptions and panics go.
//!   Withdrawing waits until no walk can be using them.
//! - [`Row`]: code that no compiler has made, a trampoline say, states its rows itself.
//! - The executable, its libraries and the vDSO need not be announced: glibc's `_dl_find_object` (2.35) knows them at
//!   each moment, without a lock. [`know_process`] finds that function, and installs what fork needs.
//!
//! - [`each_stack`]: every other thread is held, or looked at where it sleeps, and each stack is walked; [`stacks`] for a caller that
//!   holds them already. [`words`]: the stack of a thread that sleeps, where a walk does not reach its end.
//!
//! Walks may run in signal handlers, beside each other, and while rows come and go: they take no lock, allocate
//! nothing, and read the stack by `process_vm_readv(2)`, which fails where a load would fault; where that is denied, through
//! a descriptor of `/proc/self/mem` that was opened before ([`read_through`]).

mod expression;
mod index;
mod libgcc;
mod listing;
mod made;
mod memory;
mod process;
mod registers;
mod rules;
mod scan;
mod own;
mod start;
mod section;
mod stacks;
mod walk;

pub use index::{Known, Overlap, install_fork_handlers};
pub use listing::{Malformed, Planned, plan};
pub use made::{BadRows, Row};
pub use memory::{Memory, ProcessMemory, read_through};
pub use own::{is_behind_call, may_return};
pub use process::{NoFinder, know_process};
pub use registers::{Register, Registers};
pub use scan::{Words, words};
pub use section::Flaw;
pub use stacks::{Stack, each_stack, stacks};
pub use start::{Starts, StartsUnknown, thread_starts};
pub use walk::{DEEPEST, Ended, Frame, WalkError, Walker, function_at, walk, walk_here};
