//! Every stack of the process at one moment: every other thread is held, and each stack is walked, this thread's too.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::memory::ProcessMemory;
use super::registers::Registers;
use super::walk::{Ended, Frame, WalkError, Walker, walk, walk_here};
use crate::DEFAULT_LIMIT;
use crate::error::Error;
use crate::handler::Interrupted;
use crate::hold::{Held, hold_or_look};
use crate::sleeper::Sleeper;
use crate::task::{self, Tasks, Tid};
use crate::word::{self, Words};

/// The stack of a thread, while every other thread is held or sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'h> {
    tid: Tid,
    whose: Whose<'h>,
}

/// Whose stack it is.
#[derive(Clone, Copy, Debug)]
enum Whose<'h> {
    /// The holder's own.
    Own,
    /// That of a thread that is held, and what the thread has of its own.
    Held(Interrupted<'h>, &'h Words),
    /// That of a thread that was looked at where it sleeps.
    Asleep(Sleeper),
}

impl Stack<'_> {
    /// Whose it is.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Its thread's word ([`crate::word`]); `None` if the thread is not held.
    #[must_use]
    pub fn word(&self) -> Option<&AtomicU64> {
        match self.whose {
            Whose::Own => Some(word::own()),
            Whose::Held(_, words) => Some(&words.word),
            Whose::Asleep(_) => None,
        }
    }

    /// The number of its thread's creator ([`crate::creation`]), 0 if the thread was not created so; `None` if that is not known.
    #[must_use]
    pub fn creator(&self) -> Option<u64> {
        match self.whose {
            Whose::Own => Some(word::own_words().creator.load(Ordering::Relaxed)),
            Whose::Held(_, words) => Some(words.creator.load(Ordering::Relaxed)),
            Whose::Asleep(sleeper) => sleeper.creator(),
        }
    }

    /// Where its thread sleeps, if it was looked at and not held: then few registers are known, and a walk may fail for that.
    #[must_use]
    pub fn sleeper(&self) -> Option<&Sleeper> {
        match &self.whose {
            Whose::Asleep(sleeper) => Some(sleeper),
            Whose::Own | Whose::Held(..) => None,
        }
    }

    /// Walks it from its innermost frame outward and shows each frame to the visitor, until that breaks. A held
    /// thread's first frame is where it was stopped; the holder's own is the caller of this function.
    ///
    /// # Errors
    /// [`WalkError`], as [`walk`]: the frames that were shown are right, and those behind them are not known.
    pub fn walk(&self, visit: impl FnMut(&Frame) -> ControlFlow<()>) -> Result<Ended, WalkError> {
        match &self.whose {
            Whose::Own => walk_here(visit),
            Whose::Held(thread, _) => walk(&Registers::interrupted(thread.context()), ProcessMemory::own(), visit),
            Whose::Asleep(sleeper) => walk(&sleeper.registers(), ProcessMemory::own(), visit),
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
        match &self.whose {
            Whose::Own => walk_here(visit),
            Whose::Held(thread, _) => walker.walk(&Registers::interrupted(thread.context()), visit),
            Whose::Asleep(sleeper) => walker.walk(&sleeper.registers(), visit),
        }
    }
}

/// The stacks of all threads: of those that are held, of those that were looked at where they sleep, and then the holder's, which is
/// the thread that calls this. Takes no memory.
pub fn stacks(held: &Held) -> impl Iterator<Item = Stack<'_>> {
    let others = held.threads().zip(held.own_words());
    let others = others.map(|(thread, (tid, words))| Stack { tid, whose: Whose::Held(thread, words) });
    let asleep = held.sleepers().map(|sleeper| Stack { tid: sleeper.tid(), whose: Whose::Asleep(sleeper) });
    others.chain(asleep).chain(std::iter::once_with(|| Stack { tid: Tid::current(), whose: Whose::Own }))
}

/// Threads that start while the others are being held need room, too.
const SPARE: u64 = 64;

/// Shows each stack of the process at one moment to `look`, and returns what that has found. Every other thread is held for
/// [`DEFAULT_LIMIT`] at most; one that cannot be asked is looked at where it sleeps ([`hold_or_look`]).
///
/// What is found needs room, and none can be had while threads are held. So `room` makes it before, for as many
/// stacks as it is told, and `look` has it in hand. If there are more threads than that by the time all stand still, or if a
/// thread that was looked at has run meanwhile, all are let go, `room` is called again, and what was found is dropped.
///
/// `look` runs while all are held: it must not take memory or give it back, lock, print, log or panic ([`Held`]
/// has the list). It may walk, and read and write memory of its own. Whatever it keeps of each stack must have its
/// place in what `room` has made.
///
/// With no other thread in the process no signal is sent. [`super::know_process`] has been called before.
///
/// # Errors
/// As [`hold_or_look`]; [`Error::List`] if threads cannot be counted; [`Error::Awake`] if a thread that could only be looked at ran
/// each time.
pub fn each_stack<R>(mut room: impl FnMut(usize) -> R, mut look: impl FnMut(&mut R, &Stack<'_>)) -> Result<R, Error> {
    let list = |source| Error::List { source };
    let begun = Instant::now();
    let mut stacks_at_most = Tasks::open().and_then(|tasks| tasks.count()).map_err(list)? + SPARE;
    loop {
        let mut found = room(usize::try_from(stacks_at_most).unwrap_or(usize::MAX));
        let held = hold_or_look(DEFAULT_LIMIT)?;
        // Those held, those asleep, and this one.
        let stacks_here = held.count() + held.asleep() + 1;
        if stacks_here > stacks_at_most {
            // Before `found`, which gives memory back.
            drop(held);
            stacks_at_most = stacks_here + SPARE;
            continue;
        }
        stacks(&held).for_each(|stack| look(&mut found, &stack));
        // After the last stack was read.
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
