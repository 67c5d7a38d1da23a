//! The errors of writing a batch.

use std::fmt;
use std::io;

use modload_edit::{Addr, EditOrigin, disassembled};
use modload_threads::frames::{NoFinder, WalkError};
use modload_threads::{Name, Tid};
use thiserror::Error;

use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::poked::TrapObstacle;

/// The error of a batch: the published text differs from the expected bytes, the batch was refused, or the text could
/// not be written.
#[derive(Debug, Error)]
pub enum PokeError {
    /// The site holds other bytes.
    #[error("{why} at {at}: expected {}, found {}", bytes_and_code(*.at, .expected), bytes_and_code(*.at, .found))]
    Mismatch {
        /// The address.
        at: Addr,
        /// `old` of the edit.
        expected: Vec<u8>,
        /// The bytes at the address.
        found: Vec<u8>,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// The edit lies outside of text that may be poked or filled, or reaches out of it.
    #[error("{why} at {at}: {len} bytes do not lie within the published text of one module or within registered text")]
    NotText {
        /// The address.
        at: Addr,
        /// The number of bytes.
        len: usize,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// The bytes are not one instruction.
    #[error("{why} at {at}: {} is not one instruction", bytes_and_code(*.at, .bytes))]
    NotOneInstruction {
        /// The address.
        at: Addr,
        /// `old` or `new` of the edit.
        bytes: Vec<u8>,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// The new instruction cannot be emulated for a thread that hits the trap.
    #[error(
        "{why} at {at}: {} cannot be poked: only jmp, call, ret, NOPs and the zero of a static call can",
        bytes_and_code(*.at, .bytes)
    )]
    NotEmulated {
        /// The address.
        at: Addr,
        /// `new` of the edit.
        bytes: Vec<u8>,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// Threads could not be inspected.
    #[error("the threads of the process cannot be inspected")]
    Inspect(#[source] io::Error),
    /// Traps cannot be used, and threads could not be held.
    #[error("traps cannot be used, because {obstacle}, and threads cannot be held")]
    Threads {
        /// The reason why traps cannot be used.
        obstacle: TrapObstacle,
        /// The threads that could not be held.
        source: modload_threads::Error,
    },
    /// Traps cannot be used, and no thread may be held: [`TrapMask::Unheld`](crate::TrapMask::Unheld).
    #[error("traps cannot be used, because {obstacle}, and no thread may be held")]
    Unheld {
        /// The reason why traps cannot be used.
        obstacle: TrapObstacle,
    },
    /// A thread would resume within the new instruction.
    #[error(
        "{why} at {at}: thread {tid}{} is at {rip}, inside the instruction; try again when the thread has left it",
        quoted_name(.name)
    )]
    Inside {
        /// The thread.
        tid: Tid,
        /// The thread's name, if it could be read.
        name: Option<Name>,
        /// The address at which the thread is, or was when a signal interrupted it.
        rip: Addr,
        /// The address of the edit.
        at: Addr,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// Stacks cannot be walked, and joining NOPs requires that.
    #[error("NOPs cannot be joined: that needs stack walks, and stacks cannot be walked")]
    NoUnwindRows(#[source] NoFinder),
    /// The stack of a thread does not show whether the thread was interrupted within an edit.
    #[error("NOPs cannot be joined: the stack of thread {tid}{} cannot be walked", quoted_name(.name))]
    NoWalk {
        /// The thread.
        tid: Tid,
        /// The thread's name, if it could be read.
        name: Option<Name>,
        /// The error of the walk, with the frame.
        source: WalkError,
    },
    /// No byte is changed: the written part of the batch has been reverted.
    #[error("the batch could not be written; its sites have their old bytes again")]
    Write(#[from] WriteFailed),
    /// Some sites are changed, some are not, and the remaining traps lead to the new code for ever.
    #[error(
        "the batch could be neither written nor reverted, so no batch can be poked in this process any more: \
         restart the process"
    )]
    Stuck(#[source] WriteFailed),
    /// An earlier batch is [`PokeError::Stuck`].
    #[error(
        "an earlier batch could be neither written nor reverted, so no batch can be poked in this process any more: \
         restart the process"
    )]
    EarlierStuck,
}

fn quoted_name(name: &Option<Name>) -> String {
    name.map_or_else(String::new, |name| format!(" \"{name}\""))
}

/// Returns bytes and their disassembly.
fn bytes_and_code(at: Addr, bytes: &[u8]) -> impl fmt::Display {
    format!("{bytes:02x?} ({})", disassembled(at, bytes))
}
