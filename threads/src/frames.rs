//! The frames of a stack, found by call frame information alone.
//!
//! - [`walk`]: walks from the registers of a thread to its outermost frame, from callee to caller. A frame without a
//!   row, a frame that lies below its callee, and a stack that cannot be read are errors that name the place. There is
//!   no heuristic as a fallback, because the caller decides by the answer whether code may be freed.
//! - [`plan`], [`Planned`], [`Known`]: a module's `.eh_frame`, checked and indexed before a walk needs it, and the
//!   guard that keeps its rows known to walks and to the process's own unwinder, which handles exceptions and panics.
//!   Withdrawing rows waits until no walk can use them.
//! - [`Row`]: code that no compiler has made, for example a trampoline, declares its rows itself.
//! - The executable, its libraries and the vDSO need no announcement: glibc's `_dl_find_object` (2.35) knows them at
//!   each moment, without a lock. [`know_process`] finds that function, and installs the fork handlers.
//!
//! - [`each_stack`]: holds every other thread, or reads the stack of a sleeping one, and walks each stack; [`stacks`]:
//!   the same for a caller that already holds the threads. [`words`]: the words of a sleeping thread's stack, for a
//!   stack that a walk cannot walk to its end.
//!
//! Walks may run in signal handlers, in parallel, and while rows are added and withdrawn: walks take no lock, allocate
//! nothing, and read the stack by `process_vm_readv(2)`, which fails where a load would fault. Where that call is
//! denied, walks read through a descriptor of `/proc/self/mem` that was opened before ([`read_through`]).

mod expression;
mod index;
mod libgcc;
mod listing;
mod made;
mod memory;
mod process;
#[cfg(target_arch = "x86_64")]
mod x86_64;
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
pub use own::may_return;
pub use process::{NoFinder, know_process};
pub use scan::{StackWords, words};
pub use section::Flaw;
pub use stacks::{Stack, each_stack, stacks};
pub use start::{Starts, StartsUnknown, thread_starts};
pub use walk::{DEEPEST, Ended, Frame, WalkError, Walker, function_at, walk, walk_here};
pub use x86_64::{Register, Registers, is_behind_call};
