//! Inspects a stack that cannot be walked, word by word.
//!
//! Few registers are known of a thread that sleeps in the kernel. Where a walk needs another register (a frame pointer,
//! for example), the words of the stack can still show that the thread does not return to certain code. The words show
//! that only if every return address of the thread is among them:
//!
//! - The thread is in a system call. Outside of a system call, a return address may be in any register. In a system
//!   call, a return address may be in a register that the kernel shows (glibc's vfork keeps its own in rdi), and those
//!   registers are inspected.
//! - All memory that is readable without a gap from below the stack pointer up to the thread's own control block is
//!   inspected, including the memory below the stack pointer. glibc puts the block at the end of a thread's stack, so
//!   this memory contains the whole stack, and every other stack that is an array in it: an alternate signal stack, or
//!   the stack of a coroutine, whose thread has older frames *below*.
//! - A stack pointer that lies elsewhere, for example on an alternate stack in separate memory, has no such block above
//!   itself without a gap. Then nothing is known.
//! - The first thread has its block in other memory. That thread's stack ends at the address that the kernel reports as the
//!   stack's beginning.
//!
//! A word that only looks like a return address counts as one: the error is on the side of keeping code.

use std::io;

use super::memory::ProcessMemory;
use super::start;
use crate::sleeper::Sleeper;
use crate::system;
use crate::task;

/// The size limit: larger stacks are not inspected.
const LARGEST: u64 = 256 << 20;

/// The size of one read: a whole page, so a failed read means that no byte of the page can be read.
const CHUNK: usize = 4096;
const CHUNK_SIZE: u64 = 4096;

/// The result of inspecting the words of a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackWords {
    /// No word, and no register that the kernel shows, is an address of the code.
    Free {
        /// Whether the return address in the C library's call of a thread's first function is among the words.
        has_begun: bool,
    },
    /// This word is an address of the code, which may be an old return address that is not used any more.
    Hold(u64),
    /// The words that were read may not contain all return addresses.
    Unknown,
}

/// Looks for addresses of some code among the words of a sleeping thread's stack. Allocates no memory, and uses 5 KiB
/// of stack.
#[must_use]
pub fn words(sleeper: &Sleeper, mut is_code: impl FnMut(u64) -> bool) -> StackWords {
    if sleeper.call().is_none() {
        return StackWords::Unknown;
    }
    let shown = sleeper.arguments();
    if let Some(found) = shown.into_iter().chain([sleeper.rip()]).find(|value| is_code(*value)) {
        return StackWords::Hold(found);
    }
    let Ok(Some(end)) = end_of_stack(sleeper) else { return StackWords::Unknown };
    let rsp = sleeper.rsp();
    if rsp >= end || end - rsp > LARGEST {
        return StackWords::Unknown;
    }
    let mut has_begun = sleeper.tid().is_first();
    let mut found = None;
    let mut look = |bytes: &[u8; CHUNK]| {
        // Most of a stack was never touched.
        if *bytes == [0; CHUNK] {
            return;
        }
        for word in bytes.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            has_begun |= start::known_first_returns().binary_search(&word).is_ok();
            if is_code(word) {
                found = found.or(Some(word));
            }
        }
    };
    let mut memory = ProcessMemory::own();
    let mut bytes = [0; CHUNK];
    let middle = rsp & !(CHUNK_SIZE - 1);
    // Upward: all pages must be readable.
    let mut at = middle;
    while at < end {
        if !memory.read_once(at, &mut bytes) {
            return StackWords::Unknown;
        }
        look(&bytes);
        at += CHUNK_SIZE;
    }
    // Downward: to the first gap.
    let lowest = middle.saturating_sub(LARGEST);
    let mut at = middle;
    loop {
        let Some(next) = at.checked_sub(CHUNK_SIZE).filter(|next| *next > lowest) else { return StackWords::Unknown };
        at = next;
        if !memory.read_once(at, &mut bytes) {
            break;
        }
        look(&bytes);
    }
    match found {
        Some(word) => StackWords::Hold(word),
        None => StackWords::Free { has_begun },
    }
}

/// Returns the end of a thread's own stack, if it is known.
fn end_of_stack(sleeper: &Sleeper) -> io::Result<Option<u64>> {
    let end = if sleeper.tid().is_first() {
        task::start_of_stack(sleeper.tid())?
    } else {
        // The list head lies in glibc's control block of the thread.
        Some(system::robust_list(sleeper.tid().get())?)
    };
    Ok(end.filter(|end| *end != 0))
}
