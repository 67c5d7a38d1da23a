//! Every stack of the process at one moment: every other thread is held, and each stack is walked, this thread's too.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;

use super::memory::ProcessMemory;
use super::registers::Registers;
use super::walk::{Ended, Frame, WalkError, Walker, walk, walk_here};
use crate::DEFAULT_LIMIT;
use crate::error::Error;
use crate::handler::Interrupted;
use crate::hold::{Held, hold};
use crate::task::{Tasks, Tid};
use crate::word;

/// The stack of a thread, while every other thread is held.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'h> {
    tid: Tid,
    word: &'h AtomicU64,
    /// `None`: it is the holder's own.
    held: Option<Interrupted<'h>>,
}

impl Stack<'_> {
    /// Whose it is.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Its thread's word: [`crate::word`].
    #[must_use]
    pub fn word(&self) -> &AtomicU64 {
        self.word
    }

    /// Walks it from its innermost frame outward and shows each frame to the visitor, until that breaks. A held
    /// thread's first frame is where it was stopped; the holder's own is the caller of this function.
    ///
    /// # Errors
    /// [`WalkError`], as [`walk`]: the frames that were shown are right, and those behind them are not known.
    pub fn walk(&self, visit: impl FnMut(&Frame) -> ControlFlow<()>) -> Result<Ended, WalkError> {
        match &self.held {
            Some(thread) => walk(&Registers::interrupted(thread.context()), ProcessMemory::own(), visit),
            None => walk_here(visit),
        }
    }
}

impl Stack<'_> {
    /// [`Stack::walk`], with what was met on other stacks while the same threads are held.
    ///
    /// # Errors
    /// As [`Stack::walk`].
    pub fn walk_by(
        &self,
        walker: &mut Walker,
        visit: impl FnMut(&Frame) -> ControlFlow<()>,
    ) -> Result<Ended, WalkError> {
        match &self.held {
            Some(thread) => walker.walk(&Registers::interrupted(thread.context()), visit),
            None => walk_here(visit),
        }
    }
}

/// The stacks of all threads: those that are held, and then the holder's, which is the thread that calls this. Takes
/// no memory.
pub fn stacks(held: &Held) -> impl Iterator<Item = Stack<'_>> {
    let others = held.threads().zip(held.words());
    let others = others.map(|(thread, (tid, word))| Stack { tid, word, held: Some(thread) });
    others.chain(std::iter::once_with(|| Stack { tid: Tid::current(), word: word::own(), held: None }))
}

/// Threads that start while the others are being held need room, too.
const SPARE: u64 = 64;

/// Holds every other thread for [`DEFAULT_LIMIT`] at most, shows each stack to `look`, and brings what that has found.
///
/// What is found needs room, and none can be had while threads are held. So `room` makes it before, for as many
/// stacks as it is told, and `look` has it in hand. If there are more threads than that by the time all stand still,
/// everybody is let go, `room` is called again with a larger number, and nothing has been looked at.
///
/// `look` runs while everybody is held: it must not take memory or give it back, lock, print, log or panic ([`Held`]
/// has the list). It may walk, and read and write memory of its own. Whatever it keeps of each stack must have its
/// place in what `room` has made.
///
/// With no other thread in the process no signal is sent. [`super::know_process`] has been called before.
///
/// # Errors
/// As [`hold`]; [`Error::List`] if threads cannot be counted. Nobody is held then, and `look` was not called.
pub fn each_stack<R>(mut room: impl FnMut(usize) -> R, mut look: impl FnMut(&mut R, &Stack<'_>)) -> Result<R, Error> {
    let list = |source| Error::List { source };
    let mut stacks_at_most = Tasks::open().and_then(|tasks| tasks.count()).map_err(list)? + SPARE;
    loop {
        let mut found = room(usize::try_from(stacks_at_most).unwrap_or(usize::MAX));
        let held = hold(DEFAULT_LIMIT)?;
        // Those held, and this one.
        let stacks_here = held.count() + 1;
        if stacks_here <= stacks_at_most {
            stacks(&held).for_each(|stack| look(&mut found, &stack));
            drop(held);
            return Ok(found);
        }
        // Before `found`, which gives memory back.
        drop(held);
        stacks_at_most = stacks_here + SPARE;
    }
}
