//! Transitions: each thread migrates to the new code when it is in none of the functions that change.
//!
//! All threads are held for a moment, and each stack is walked. Threads with none of the functions on their stacks have
//! migrated. If all threads have, sites become jumps to the new code in that same moment, and the transition is
//! complete. Otherwise sites become jumps to stubs. A stub sends a thread by its word: to the old code until the thread
//! has migrated. Threads that have not migrated are checked again: when they reach a stub or a checkpoint (`pass`),
//! when a blocking thread has ended (`events`), and periodically, with growing intervals (`worker`). In the last two
//! cases the worker thread holds all threads for the check. New threads start with the word 0: they have migrated.
//!
//! If the host allows migration only at checkpoints, no thread is held: `checkpoints`.

mod look;
mod shown;
mod pass;
mod roll;
mod checkpoints;
mod events;
mod worker;

use std::ops::Range;
use std::sync::atomic::Ordering;

use modload_edit::Addr;
use modload_ftrace::{Divert, divert_chosen};
use modload_threads::frames::{WalkError, Walker, know_process};
use modload_threads::word::own;
use modload_threads::{DEFAULT_LIMIT, Tasks, Tid, hold};

pub(crate) use pass::came_by;
pub use pass::checkpoint;

use checkpoints::AtCheckpoints;
use look::{Ranges, Seen, Whom, is_over, look, mark};
use shown::SHOWN;

use crate::error::PatchError;
use crate::spec::Transition;
use crate::stub::{Asks, Fork};
use crate::table::{PatchId, Table};

/// The target of a transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Linux's KLP_PATCHED.
    Patched,
    /// Linux's KLP_UNPATCHED.
    Unpatched,
}

/// A function in transition.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) entry: Addr,
    pub(crate) fork: &'static Fork,
    /// The target for threads that have migrated, or `None` for the function itself.
    pub(crate) to: Option<Addr>,
    /// The target for all other threads.
    from: Option<Addr>,
    to_extent: Vec<Range<u64>>,
    from_extent: Vec<Range<u64>>,
}

/// The reason for which a thread has not migrated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A function that changes is on the thread's stack, or was at its last checkpoint. The value is the address in
    /// that frame.
    Inside(u64),
    /// The thread's stack cannot be walked to its end.
    Unknown(WalkError),
    /// The thread has not reached a checkpoint, and threads migrate only there.
    NoCheckpoint,
    /// The thread's stack could not be walked to its end at its last checkpoint.
    Unwalked,
}

/// A thread that has not migrated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocked {
    /// The thread.
    pub tid: Tid,
    /// The reason.
    pub why: Why,
}

/// The transition under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pub(crate) patch: PatchId,
    pub(crate) target: Target,
    pub(crate) moving: Vec<Moving>,
    /// The threads that had not migrated at the last check.
    blocked: Vec<Blocked>,
    /// The word for threads that have not migrated, in transitions that hold threads.
    mark: u64,
    /// The state of a checkpoint-only transition. `None` in transitions that hold threads.
    roll: Option<AtCheckpoints>,
}

impl UnderWay {
    /// Returns the threads that have not migrated.
    pub(crate) fn blocked(&self) -> Vec<Blocked> {
        self.roll.as_ref().map_or_else(|| self.blocked.clone(), |roll| roll::left(roll.phase))
    }

    /// Returns the redirections of the functions' calls.
    fn diverts(&self, to: impl Fn(&Moving) -> Option<Addr>) -> Vec<Divert> {
        self.moving.iter().map(|moving| Divert { entry: moving.entry, to: to(moving) }).collect()
    }

    /// Exchanges old and new code.
    fn swap(&mut self) {
        self.target = match self.target {
            Target::Patched => Target::Unpatched,
            Target::Unpatched => Target::Patched,
        };
        for moving in &mut self.moving {
            std::mem::swap(&mut moving.from_extent, &mut moving.to_extent);
            std::mem::swap(&mut moving.to, &mut moving.from);
        }
    }
}

/// A function, its code before and its code after. `None` is the function itself.
type Move = (Addr, (Option<Addr>, Ranges), (Option<Addr>, Ranges));

impl Table {
    /// Starts a transition of a patch's functions, which are patched, to or from their replacements. Returns `true` if
    /// all threads have migrated already.
    pub(crate) fn begin(&mut self, patch: PatchId, target: Target) -> Result<bool, PatchError> {
        know_process()?;
        let moves = self.moves(patch, target);
        let how = self.patch(patch).map(|patch| patch.host.transition).unwrap_or_default();
        let forks = self.stubs.take(moves.len(), if how == Transition::Anywhere { Asks::Half } else { Asks::Tag })?;
        let moving = moves.into_iter().zip(forks).map(|(moves, fork)| self.moving(moves, fork)).collect();
        self.transition = Some(UnderWay { patch, target, moving, blocked: Vec::new(), mark: mark(), roll: None });
        let over = match how {
            Transition::Anywhere => {
                roll::hold();
                self.attempt(Whom::All)
            }
            Transition::CheckpointsOnly => self.begin_at_checkpoints(),
        };
        if over.is_err()
            && let Some(transition) = self.transition.take()
        {
            roll::close();
            self.stubs.retire(transition.moving.iter().map(|moving| moving.fork));
        }
        over
    }

    /// Returns the functions whose newest code the transition changes, with the code before and after.
    fn moves(&self, patch: PatchId, target: Target) -> Vec<Move> {
        let moves = |(entry, function): (&Addr, &crate::table::Patched)| {
            let newest = function.stack.len().checked_sub(1)?;
            if function.stack[newest].patch != patch {
                return None;
            }
            let with = self.version(*entry, Some(newest));
            let without = self.version(*entry, newest.checked_sub(1));
            Some(match target {
                Target::Patched => (*entry, without, with),
                Target::Unpatched => (*entry, with, without),
            })
        };
        self.functions.iter().filter_map(moves).collect()
    }

    /// Checks threads, and completes the transition if all have migrated. Returns whether the transition is complete.
    fn attempt(&mut self, whom: Whom) -> Result<bool, PatchError> {
        let Some(transition) = &self.transition else { return Ok(true) };
        if transition.roll.is_some() {
            return self.attempt_at_checkpoints(whom);
        }
        let mark = transition.mark;
        let mut ways = vec![transition.diverts(|moving| moving.to)];
        if whom == Whom::All {
            ways.push(transition.diverts(|moving| Some(moving.fork.stub())));
        }
        let ranges = self.sight();
        let stubs = self.stubs.sight();
        let list = |source| modload_threads::Error::List { source };
        let mut room = Tasks::open().and_then(|tasks| tasks.count()).map_err(list)? + 64;
        let (chosen, seen) = loop {
            let blocked = Vec::with_capacity(modload_edit::index(room));
            let mut seen = Seen { blocked, room, is_small: false, mark, stubs_are_empty: false, walker: Walker::new() };
            let chosen = divert_chosen(&ways, |held| {
                look(held, whom, &ranges, &stubs, &mut seen);
                match (seen.is_small, seen.blocked.is_empty()) {
                    (true, _) => None,
                    (false, true) => Some(0),
                    (false, false) => (whom == Whom::All).then_some(1),
                }
            });
            let chosen = match chosen {
                Ok(chosen) => chosen,
                Err(error) => {
                    // The words mean nothing without stubs.
                    if whom == Whom::All {
                        clear_words()?;
                    }
                    return Err(error.into());
                }
            };
            if !seen.is_small {
                break (chosen, seen);
            }
            room *= 2;
        };
        if seen.stubs_are_empty {
            self.stubs.recover();
        }
        let over = chosen == Some(0);
        if let Some(transition) = &mut self.transition {
            transition.blocked = seen.blocked;
        }
        if over {
            // If the transition was forced, threads may be in stubs.
            self.settle_stubs();
            roll::close();
            SHOWN.clear();
        } else if whom == Whom::All {
            SHOWN.show(&ranges);
            worker::work();
        }
        Ok(over)
    }

    /// Sets the final targets of the stubs, for threads that reach a stub late.
    fn settle_stubs(&self) {
        for moving in self.transition.iter().flat_map(|transition| &transition.moving) {
            let home = self.home(moving.entry);
            moving.fork.settles(home, moving.to.unwrap_or(home));
        }
    }

    /// Returns an address behind a function's site.
    fn home(&self, entry: Addr) -> Addr {
        self.functions.get(&entry).map_or(entry, |function| function.home)
    }

    /// Returns the ranges that must not be on the stack of a thread that migrates: functions that change, code that
    /// changes when all threads have migrated, and stubs. Sorted.
    fn sight(&self) -> Ranges {
        let moving = self.transition.iter().flat_map(|transition| &transition.moving);
        let mut ranges: Ranges = moving.flat_map(|moving| moving.from_extent.iter().cloned()).collect();
        ranges.extend(self.code_that_goes());
        ranges.extend(self.stubs.sight());
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let more = next.start <= range.end;
            range.end = if more { range.end.max(next.end) } else { range.end };
            more
        });
        ranges
    }

    /// Adds the functions of a loading module to the transition under way. No thread is in these functions.
    pub(crate) fn join(&mut self, patch: PatchId) -> Result<(), PatchError> {
        let Some(target) = self.transition.as_ref().map(|transition| transition.target) else { return Ok(()) };
        let known: Vec<Addr> = self.transition.iter().flat_map(|one| &one.moving).map(|moving| moving.entry).collect();
        let moves: Vec<_> =
            self.moves(patch, target).into_iter().filter(|(entry, ..)| !known.contains(entry)).collect();
        let forks = self.stubs.take(moves.len(), self.asks())?;
        let moving: Vec<_> = moves.into_iter().zip(forks).map(|(moves, fork)| self.moving(moves, fork)).collect();
        if let Some(transition) = &mut self.transition {
            transition.moving.extend(moving);
        }
        SHOWN.show(&self.sight());
        Ok(())
    }

    /// Returns the part of a thread's word that the stubs of the transition under way compare.
    fn asks(&self) -> Asks {
        let roll = self.transition.as_ref().and_then(|transition| transition.roll.as_ref());
        if roll.is_some() { Asks::Tag } else { Asks::Half }
    }

    /// Removes the functions of an unloaded module from the transition.
    pub(crate) fn part(&mut self, entries: &[Addr]) {
        let Some(transition) = &mut self.transition else { return };
        let gone = transition.moving.extract_if(.., |moving| entries.contains(&moving.entry));
        let gone: Vec<_> = gone.map(|moving| moving.fork).collect();
        self.stubs.retire(gone.into_iter());
        SHOWN.show(&self.sight());
    }

    fn moving(&self, (entry, from, to): Move, fork: &'static Fork) -> Moving {
        let home = self.home(entry);
        let ((from, from_extent), (to, to_extent)) = (from, to);
        let moving = Moving { entry, fork, to, from, to_extent, from_extent };
        match self.transition.as_ref().and_then(|transition| transition.roll.as_ref()) {
            Some(roll) => roll.leads(&moving, home),
            None => fork.leads(home, to.unwrap_or(home), from.unwrap_or(home)),
        }
        moving
    }

    /// Reverses the transition: threads that had migrated have to migrate back, and all others count as migrated.
    pub(crate) fn turn(&mut self) -> Result<(), PatchError> {
        let Some(transition) = &mut self.transition else { return Err(PatchError::NoTransition) };
        if transition.roll.is_some() {
            self.turn_at_checkpoints();
            return Ok(());
        }
        let held = hold(DEFAULT_LIMIT)?;
        for word in held.words().map(|(_, word)| word).chain(std::iter::once(own())) {
            let was_over = is_over(word.load(Ordering::Relaxed));
            word.store(if was_over { transition.mark } else { 0 }, Ordering::Relaxed);
        }
        transition.moving.iter().for_each(|moving| moving.fork.reverse());
        drop(held);
        transition.swap();
        let ranges = self.sight();
        SHOWN.show(&ranges);
        Ok(())
    }

    /// Checks the threads again that have not migrated. Returns whether all have migrated.
    pub(crate) fn try_again(&mut self) -> Result<bool, PatchError> {
        self.attempt(Whom::Left)
    }

    /// Counts all threads as migrated, wherever they are.
    pub(crate) fn force(&mut self) -> Result<bool, PatchError> {
        self.attempt(Whom::Nobody)
    }

    /// Updates the transition in the child of a fork. Of the threads that had not migrated, only the thread that has
    /// forked can exist here. The worker thread does not exist. The worker is started on the first request, because
    /// most children soon run another program. `before` was the thread's id before the fork.
    pub(crate) fn forked(&mut self, before: i32) {
        worker::forked();
        roll::forked(before);
    }

    /// Ensures that the worker checks the transition under way, if there is one.
    pub(crate) fn keep_working(&self) {
        if self.transition.is_some() {
            worker::work();
        }
    }
}

/// Clears the words of all threads: no thread takes part in a transition.
fn clear_words() -> Result<(), PatchError> {
    let held = hold(DEFAULT_LIMIT)?;
    held.words().map(|(_, word)| word).chain(std::iter::once(own())).for_each(|word| word.store(0, Ordering::Relaxed));
    Ok(())
}
