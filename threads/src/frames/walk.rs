//! The walk: from a thread's registers to its outermost frame.

use std::fmt;
use std::ops::{ControlFlow, Range};

use thiserror::Error;

use super::index::Reading;
use super::memory::{Memory, ProcessMemory};
use super::rules::{RowCache, Unknown, Unwinder, Unwound};
use super::x86_64::{Register, Registers, registers_here};

/// The greatest number of frames that a walk passes. A thread's usual stack of 8 MiB has room for half as many frames
/// that hold only a return address and eight bytes; a stack with more frames runs in circles, by signal frames.
pub const DEEPEST: usize = 1 << 20;

/// A frame of a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The address at which the frame will resume.
    pub pc: u64,
    /// The stack pointer of the caller before the call.
    pub cfa: u64,
    /// Whether `pc` is the next instruction, not a return address: in the first frame, and in a frame that a signal has
    /// interrupted.
    pub is_exact: bool,
    /// Whether the frame is the kernel's call of a signal handler: the outer frame was interrupted.
    pub is_signal: bool,
}

impl Frame {
    /// Returns an address inside the function. A return address behind a call that does not return may belong to the
    /// next function.
    #[must_use]
    pub fn inside(&self) -> u64 {
        if self.is_exact { self.pc } else { self.pc.wrapping_sub(1) }
    }
}

/// The way in which a walk has ended without an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// At the outermost frame: its row says that it has no caller.
    Outermost,
    /// At the visitor's request.
    Early,
}

/// The reason why a walk has ended at a frame whose caller is not known. The frames before it were visited, and this
/// one was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum WalkError {
    /// There is no row for the address, or the row is malformed or not supported.
    #[error("no call frame information for {pc:#x}")]
    NoRow {
        /// The address at which the frame will resume.
        pc: u64,
    },
    /// The row needs a register that is not known in this frame.
    #[error("the frame of {pc:#x} is found by {register}, which its callees need not have kept")]
    UnknownRegister {
        /// The address at which the frame will resume.
        pc: u64,
        /// The register.
        register: Register,
    },
    /// The CFA is not aligned to 8 bytes, or is below the frame's stack pointer: the stack or the row is wrong.
    #[error("the frame of {pc:#x} ends at {cfa:#x}, where it cannot end")]
    BadCfa {
        /// The address at which the frame will resume.
        pc: u64,
        /// The CFA by the row.
        cfa: u64,
    },
    /// The stack cannot be read.
    #[error("the frame of {pc:#x} has something saved at {address:#x}, which cannot be read")]
    Unreadable {
        /// The address at which the frame will resume.
        pc: u64,
        /// The address.
        address: u64,
    },
    /// There are more frames than any stack has room for.
    #[error("more than {DEEPEST} frames")]
    TooDeep,
    /// The registers do not contain the instruction pointer or the stack pointer of the thread.
    #[error("the instruction pointer or the stack pointer is not given")]
    NowhereToBegin,
}

/// Walks from these registers outward and shows each frame to the visitor. Async-signal-safe if the visitor is, and if
/// [`super::know_process`] has been called before. Uses about 6 KiB of stack.
///
/// The registers belong to this thread, or to a thread that does not run meanwhile.
///
/// # Errors
/// [`WalkError`]: the frame whose caller is not known, and the reason. The walk does not guess: each frame that was
/// visited follows from the registers by rows alone.
pub fn walk(
    registers: &Registers,
    memory: impl Memory,
    mut visit: impl FnMut(&Frame) -> ControlFlow<()>,
) -> Result<Ended, WalkError> {
    let mut unwinder = Unwinder::new(memory);
    steps(registers, &mut visit, |at, registers, tables| unwinder.unwind(at, registers, tables))
}

/// A walker of many stacks while all other threads are held: rows that it finds for one stack serve the others. A walker must
/// be made before the hold, because it allocates memory, dropped after the hold, and never used across two holds: rows
/// may have changed in between.
pub struct Walker {
    unwinder: Unwinder<ProcessMemory>,
    met: RowCache,
}

impl fmt::Debug for Walker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walker").finish_non_exhaustive()
    }
}

impl Default for Walker {
    fn default() -> Walker {
        Walker::new()
    }
}

impl Walker {
    /// Returns a walker that has found no rows yet.
    #[must_use]
    pub fn new() -> Walker {
        Walker { unwinder: Unwinder::new(ProcessMemory::own()), met: RowCache::new() }
    }

    /// Walks a stack of this process, like [`walk`].
    ///
    /// # Errors
    /// As [`walk`].
    pub fn walk(
        &mut self,
        registers: &Registers,
        mut visit: impl FnMut(&Frame) -> ControlFlow<()>,
    ) -> Result<Ended, WalkError> {
        let Walker { unwinder, met } = self;
        steps(registers, &mut visit, |at, registers, tables| unwinder.unwind_met(met, at, registers, tables))
    }
}

/// Walks frame by frame; `unwind` applies the rows.
fn steps(
    registers: &Registers,
    visit: &mut impl FnMut(&Frame) -> ControlFlow<()>,
    mut unwind: impl FnMut(u64, &Registers, &Reading) -> Result<Unwound, Unknown>,
) -> Result<Ended, WalkError> {
    let tables = Reading::begin();
    let mut registers = *registers;
    let mut is_exact = true;
    registers.get(Register::STACK).ok_or(WalkError::NowhereToBegin)?;
    for _ in 0..DEEPEST {
        let pc = registers.get(Register::RETURN).ok_or(WalkError::NowhereToBegin)?;
        let mut frame = Frame { pc, cfa: 0, is_exact, is_signal: false };
        let unwound = unwind(frame.inside(), &registers, &tables).map_err(|unknown| match unknown {
            Unknown::NoRow => WalkError::NoRow { pc },
            Unknown::Register(register) => WalkError::UnknownRegister { pc, register },
            Unknown::Cfa(cfa) => WalkError::BadCfa { pc, cfa },
            Unknown::Unreadable(address) => WalkError::Unreadable { pc, address },
        })?;
        frame.cfa = unwound.cfa;
        frame.is_signal = unwound.interrupts;
        if visit(&frame).is_break() {
            return Ok(Ended::Early);
        }
        let Some(caller) = unwound.caller else { return Ok(Ended::Outermost) };
        registers = caller;
        is_exact = unwound.interrupts;
    }
    Err(WalkError::TooDeep)
}

/// Returns the range of the function that holds an address, by call frame information; `None` if no description covers
/// the address.
#[must_use]
pub fn function_at(at: u64) -> Option<Range<u64>> {
    Unwinder::new(ProcessMemory::own()).range(at, &Reading::begin())
}

/// Walks this thread's own stack, from the caller of this function outward.
///
/// # Errors
/// As [`walk`].
#[inline(never)]
pub fn walk_here(mut visit: impl FnMut(&Frame) -> ControlFlow<()>) -> Result<Ended, WalkError> {
    let here = registers_here!();
    let mut is_ours = true;
    walk(&here, ProcessMemory::own(), |frame| {
        if std::mem::take(&mut is_ours) { ControlFlow::Continue(()) } else { visit(frame) }
    })
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.pc)
    }
}
