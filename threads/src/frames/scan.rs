//! A stack that cannot be walked, looked at word by word.
//!
//! Of a thread that sleeps in the kernel few registers are known. Where a walk needs another one (a frame pointer, say), the
//! words of the stack can still show that the thread returns to none of some code. They show it only if every return address of
//! the thread is among them:
//!
//! - The thread is in a system call. Elsewhere a return address may be in any register; in a system call it may be in those that
//!   the kernel shows (glibc's vfork keeps its own in rdi), and those are looked at.
//! - All memory that is readable without a gap from below the stack pointer up to the thread's own control block is looked at,
//!   below the stack pointer too. glibc puts the block at the end of a thread's stack, so the whole stack is there, and every
//!   other stack that is an array in it: an alternate signal stack, or a coroutine's, whose thread has older frames *below*.
//! - A stack pointer that lies elsewhere, on an alternate stack of its own memory say, has no such block above itself without a
//!   gap, and nothing is known then.
//! - The first thread has its block in other memory. Its stack ends where the kernel says that it began.
//!
//! A word that only looks like a return address counts as one: that errs on the side that keeps code.

use std::io;

use super::memory::ProcessMemory;
use super::start;
use crate::sleeper::Sleeper;
use crate::system;
use crate::task;

/// Stacks that are larger are not looked at.
const LARGEST: u64 = 256 << 20;

/// How much is read at once: whole pages, so that where reading fails nothing is mapped.
const CHUNK: usize = 4096;
const CHUNK_SIZE: u64 = 4096;

/// What the words of a stack have shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Words {
    /// None of them, and no register that is shown, is an address of the code.
    Free {
        /// Whether the C library's call of a thread's first function is among them.
        has_begun: bool,
    },
    /// This one is, or may be an old one that nothing returns to.
    Hold(u64),
    /// They are not known to be all.
    Unknown,
}

/// Looks for addresses of some code among the words of a sleeping thread's stack. Takes no memory, and 5 KiB of stack.
#[must_use]
pub fn words(sleeper: &Sleeper, mut is_code: impl FnMut(u64) -> bool) -> Words {
    if sleeper.call().is_none() {
        return Words::Unknown;
    }
    let shown = sleeper.arguments();
    if let Some(found) = shown.into_iter().chain([sleeper.rip()]).find(|value| is_code(*value)) {
        return Words::Hold(found);
    }
    let Ok(Some(end)) = end_of_stack(sleeper) else { return Words::Unknown };
    let rsp = sleeper.rsp();
    if rsp >= end || end - rsp > LARGEST {
        return Words::Unknown;
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
    // Upward: all of it must be readable.
    let mut at = middle;
    while at < end {
        if !memory.read_once(at, &mut bytes) {
            return Words::Unknown;
        }
        look(&bytes);
        at += CHUNK_SIZE;
    }
    // Downward: to the first gap.
    let lowest = middle.saturating_sub(LARGEST);
    let mut at = middle;
    loop {
        let Some(next) = at.checked_sub(CHUNK_SIZE).filter(|next| *next > lowest) else { return Words::Unknown };
        at = next;
        if !memory.read_once(at, &mut bytes) {
            break;
        }
        look(&bytes);
    }
    match found {
        Some(word) => Words::Hold(word),
        None => Words::Free { has_begun },
    }
}

/// Where a thread's own stack ends, if that is known.
fn end_of_stack(sleeper: &Sleeper) -> io::Result<Option<u64>> {
    let end = if sleeper.tid().is_first() {
        task::start_of_stack(sleeper.tid())?
    } else {
        // In glibc's control block of the thread.
        Some(system::robust_list(sleeper.tid().get())?)
    };
    Ok(end.filter(|end| *end != 0))
}
