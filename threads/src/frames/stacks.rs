//! The stacks of all threads of the process at one moment: every other thread is held, or inspected in its sleep. Each
//! stack is walked, including this thread's.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::memory::ProcessMemory;
use super::walk::{Ended, Frame, WalkError, Walker, walk, walk_here};
use super::x86_64::Registers;
use crate::DEFAULT_LIMIT;
use crate::error::Error;
use crate::handler::Interrupted;
use crate::hold::{Held, hold_or_look};
use crate::sleeper::Sleeper;
use crate::task::{self, Tasks, Tid};
use crate::word::{self, ThreadWords};

/// The stack of a thread, while every other thread is held or sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'h> {
    tid: Tid,
    whose: Whose<'h>,
}

/// The source of a stack.
#[derive(Clone, Copy, Debug)]
enum Whose<'h> {
    /// The holder's own stack.
    Own,
    /// The stack of a held thread, and the words in the thread's own memory.
    Held(Interrupted<'h>, &'h ThreadWords),
    /// The stack of a thread that was inspected in its sleep.
    Asleep(Sleeper),
}

impl Stack<'_> {
    /// Returns the thread that the stack belongs to.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Returns the thread's word ([`crate::word`]); `None` if the thread is not held.
    #[must_use]
    pub fn word(&self) -> Option<&AtomicU64> {
        match self.whose {
            Whose::Own => Some(word::own()),
            Whose::Held(_, words) => Some(&words.word),
            Whose::Asleep(_) => None,
        }
    }

    /// Returns the number of the thread's creator ([`crate::creation`]), 0 if the thread has none; `None` if the number
    /// is not known.
    #[must_use]
    pub fn creator(&self) -> Option<u64> {
        match self.whose {
            Whose::Own => Some(word::own_words().creator.load(Ordering::Relaxed)),
            Whose::Held(_, words) => Some(words.creator.load(Ordering::Relaxed)),
            Whose::Asleep(sleeper) => sleeper.creator(),
        }
    }

    /// Returns the sleeping thread, if the thread was inspected and not held. Then few registers are known, and a walk
    /// may fail for that.
    #[must_use]
    pub fn sleeper(&self) -> Option<&Sleeper> {
        match &self.whose {
            Whose::Asleep(sleeper) => Some(sleeper),
            Whose::Own | Whose::Held(..) => None,
        }
    }

    /// Walks the stack from its innermost frame outward and shows each frame to the visitor, until the visitor breaks.
    /// A held thread's first frame is the frame in which it was stopped; the holder's first frame is the caller of this
    /// function.
    ///
    /// # Errors
    /// [`WalkError`], as [`walk`]: the frames that were shown are right, and the frames behind them are not known.
    pub fn walk(&self, visit: impl FnMut(&Frame) -> ControlFlow<()>) -> Result<Ended, WalkError> {
        match &self.whose {
            Whose::Own => walk_here(visit),
            Whose::Held(thread, _) => walk(&Registers::interrupted(thread.context()), ProcessMemory::own(), visit),
            Whose::Asleep(sleeper) => walk(&sleeper.registers(), ProcessMemory::own(), visit),
        }
    }
}

impl Stack<'_> {
    /// Works like [`Stack::walk`], and uses rows that were found on other stacks while the same threads are held.
    ///
    /// # Errors
    /// As [`Stack::walk`].
    pub fn walk_by(
        &self,
        walker: &mut Walker,
        visit: impl FnMut(&Frame) -> ControlFlow<()>,
    ) -> Result<Ended, WalkError> {
        match &self.whose {
            Whose::Own => walk_here(visit),
            Whose::Held(thread, _) => walker.walk(&Registers::interrupted(thread.context()), visit),
            Whose::Asleep(sleeper) => walker.walk(&sleeper.registers(), visit),
        }
    }
}

/// Returns the stacks of all threads: first those of held threads, then those of threads that were inspected in their
/// sleep, and then the stack of the holder, which is the thread that calls this function. Allocates no memory.
pub fn stacks(held: &Held) -> impl Iterator<Item = Stack<'_>> {
    let others = held.threads().zip(held.own_words());
    let others = others.map(|(thread, (tid, words))| Stack { tid, whose: Whose::Held(thread, words) });
    let asleep = held.sleepers().map(|sleeper| Stack { tid: sleeper.tid(), whose: Whose::Asleep(sleeper) });
    others.chain(asleep).chain(std::iter::once_with(|| Stack { tid: Tid::current(), whose: Whose::Own }))
}

/// The number of additional stacks to make room for: threads may start while the others are being held.
const SPARE: u64 = 64;

/// Shows each stack of the process at one moment to `look`, and returns the value that `look` has filled. Every other
/// thread is held for [`DEFAULT_LIMIT`] at most; a thread that cannot be sent the signal is inspected in its sleep
/// ([`hold_or_look`]).
///
/// The results need memory, and none can be allocated while threads are held. So `room` allocates it before, for as
/// many stacks as its argument says, and `look` gets the value. If the threads are more than that once all are held, or
/// if a thread that was inspected has run meanwhile, all threads are released, the results are dropped, and `room` is
/// called again.
///
/// `look` runs while all threads are held: it must not allocate or free memory, lock, print, log or panic ([`Held`] has
/// the list). `look` may walk, and may read and write memory of its own. All data that it keeps of a stack must fit in the
/// value that `room` has made.
///
/// If the process has no other thread, no signal is sent. [`super::know_process`] must have been called before.
///
/// # Errors
/// As [`hold_or_look`]; [`Error::List`] if threads cannot be counted; [`Error::Awake`] if a thread that could only be
/// inspected ran each time.
pub fn each_stack<R>(mut room: impl FnMut(usize) -> R, mut look: impl FnMut(&mut R, &Stack<'_>)) -> Result<R, Error> {
    let list = |source| Error::List { source };
    let begun = Instant::now();
    let mut stacks_at_most = Tasks::open().and_then(|tasks| tasks.count()).map_err(list)? + SPARE;
    loop {
        let mut found = room(usize::try_from(stacks_at_most).unwrap_or(usize::MAX));
        let held = hold_or_look(DEFAULT_LIMIT)?;
        // The stacks of held threads, of sleeping threads, and of this thread.
        let stacks_here = held.count() + held.asleep() + 1;
        if stacks_here > stacks_at_most {
            // The threads are released first, because dropping `found` frees memory.
            drop(held);
            stacks_at_most = stacks_here + SPARE;
            continue;
        }
        stacks(&held).for_each(|stack| look(&mut found, &stack));
        // Only after the last stack was read.
        let awake = held.awake();
        drop(held);
        match awake.map_err(list)? {
            None => return Ok(found),
            Some(tid) if begun.elapsed() > DEFAULT_LIMIT => {
                return Err(Error::Awake { tid, name: task::name(tid).ok().flatten(), limit: DEFAULT_LIMIT });
            }
            Some(_) => {}
        }
    }
}
