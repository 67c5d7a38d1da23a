//! Transitions: each thread migrates to the new code when it is in none of the functions that change.
//!
//! All threads are held for a moment, and each stack is walked. Threads with none of the functions on their stacks have
//! migrated. If all threads have, sites become jumps to the new code in that same moment, and the transition is
//! complete. Otherwise sites become jumps to stubs. A stub sends a thread by its word: to the old code until the thread
//! has migrated. Threads that have not migrated are checked again: when they reach a stub or a checkpoint
//! (`self_check`), when a blocking thread has ended (`events`), and periodically, with growing intervals. In the last
//! two cases the worker thread (`operate/worker.rs`) holds all threads for the check. New threads start with the word
//! 0: they have migrated.
//!
//! If the host allows migration only at checkpoints, no thread is held: `checkpoints`.
//!
//! A file of this folder imports only from the files before it in the list below.

mod blocked;
mod word;
mod phase;
mod ranges;
mod events;
pub(crate) mod worker_id;
mod roster;
mod self_check;
mod held_check;
mod active;
mod checkpoints;

use modload_edit::Addr;
use modload_ftrace::divert_chosen;
use modload_threads::frames::{Walker, know_process};
use modload_threads::{DEFAULT_LIMIT, Tasks, hold};

pub(crate) use active::ActiveTransition;
pub use blocked::{BlockReason, Blocked};
pub(crate) use events::Waiter;
pub use self_check::checkpoint;
pub(crate) use self_check::on_unmigrated_call;

use active::{MovingFunction, moves};
use held_check::{HeldCheck, ThreadsToCheck, check_stacks};
use phase::{announce_end, announce_holding};
use ranges::PUBLISHED_RANGES;
use word::{ThreadWord, clear_words, exchange_words};

use crate::error::PatchError;
use crate::patch::PatchId;
use crate::patches::Patches;
use crate::slices::WrittenSlices;
use crate::spec::Transition;
use crate::stub::{TwoWayStubs, WordCheck};
use crate::target::Target;

/// The transition under way, if there is one, and the stubs for all transitions.
#[derive(Debug)]
pub(crate) struct Transitions {
    pub(crate) active: Option<ActiveTransition>,
    stubs: TwoWayStubs,
}

impl Transitions {
    pub(crate) const fn new() -> Transitions {
        Transitions { active: None, stubs: TwoWayStubs::new() }
    }

    /// Returns the patch of the transition under way.
    pub(crate) fn patch(&self) -> Option<PatchId> {
        self.active.as_ref().map(|transition| transition.patch)
    }

    /// Starts a transition of a patch's functions, which are patched, to or from their replacements. Returns `true` if
    /// all threads have migrated already.
    pub(crate) fn begin(
        &mut self,
        patches: &Patches,
        slices: &WrittenSlices,
        patch: PatchId,
        target: Target,
    ) -> Result<bool, PatchError> {
        know_process()?;
        let moves = moves(patches, patch, target);
        let how = patches.get(patch).map(|patch| patch.host.transition).unwrap_or_default();
        let check = if how == Transition::Anywhere { WordCheck::Half } else { WordCheck::Tag };
        let stubs = self.stubs.take(moves.len(), check)?;
        let moving = moves.into_iter().zip(stubs).map(|(moves, stub)| MovingFunction::new(patches, moves, stub, None));
        let (moving, unmigrated_word) = (moving.collect(), ThreadWord::of_new_transition());
        let transition =
            ActiveTransition { patch, target, moving, blocked: Vec::new(), unmigrated_word, checkpoints: None };
        let transition = self.active.insert(transition);
        let migrated = match how {
            Transition::Anywhere => {
                announce_holding();
                self.attempt(patches, slices, ThreadsToCheck::All)
            }
            Transition::CheckpointsOnly => checkpoints::begin(transition, &mut self.stubs, patches, slices),
        };
        if migrated.is_err() {
            announce_end();
            self.finish();
        }
        migrated
    }

    /// Ends the transition under way: no site leads to its stubs any more.
    pub(crate) fn finish(&mut self) {
        if let Some(transition) = self.active.take() {
            self.stubs.retire(transition.moving.iter().map(|moving| moving.stub));
        }
    }

    /// Checks threads, and completes the transition if all have migrated. Returns whether the transition is complete.
    fn attempt(
        &mut self,
        patches: &Patches,
        slices: &WrittenSlices,
        threads: ThreadsToCheck,
    ) -> Result<bool, PatchError> {
        let Some(transition) = &mut self.active else { return Ok(true) };
        if transition.checkpoints.is_some() {
            return checkpoints::attempt(transition, &mut self.stubs, patches, threads);
        }
        let unmigrated_word = transition.unmigrated_word;
        let mut ways = vec![transition.diverts(|moving| moving.to)];
        if threads == ThreadsToCheck::All {
            ways.push(transition.diverts(|moving| Some(moving.stub.addr())));
        }
        let ranges = transition.ranges(patches, slices, &self.stubs);
        let stubs = self.stubs.ranges();
        let list = |source| modload_threads::Error::List { source };
        let mut room = Tasks::open().and_then(|tasks| tasks.count()).map_err(list)? + 64;
        let (chosen, check) = loop {
            let blocked = Vec::with_capacity(modload_edit::index(room));
            let mut check = HeldCheck {
                blocked,
                room,
                is_too_small: false,
                unmigrated_word,
                stubs_are_empty: false,
                walker: Walker::new(),
            };
            let chosen = divert_chosen(&ways, |held| {
                check_stacks(held, threads, &ranges, &stubs, &mut check);
                match (check.is_too_small, check.blocked.is_empty()) {
                    (true, _) => None,
                    (false, true) => Some(0),
                    (false, false) => (threads == ThreadsToCheck::All).then_some(1),
                }
            });
            let chosen = match chosen {
                Ok(chosen) => chosen,
                Err(error) => {
                    // The words mean nothing without stubs. If the words cannot be cleared, the first error still says more.
                    if threads == ThreadsToCheck::All
                        && let Err(error) = clear_words()
                    {
                        tracing::warn!(%error, "the words of threads could not be cleared");
                    }
                    return Err(error.into());
                }
            };
            if !check.is_too_small {
                break (chosen, check);
            }
            room *= 2;
        };
        if check.stubs_are_empty {
            self.stubs.recover();
        }
        let migrated = chosen == Some(0);
        transition.blocked = check.blocked;
        if migrated {
            // If the transition was forced, threads may be in stubs.
            transition.settle_stubs(patches);
            announce_end();
            PUBLISHED_RANGES.clear();
        } else if threads == ThreadsToCheck::All {
            PUBLISHED_RANGES.publish(&ranges);
        }
        Ok(migrated)
    }

    /// Adds the functions of a loading module to the transition under way. No thread is in these functions.
    pub(crate) fn add_module(
        &mut self,
        patches: &Patches,
        slices: &WrittenSlices,
        patch: PatchId,
    ) -> Result<(), PatchError> {
        let Some(transition) = &mut self.active else { return Ok(()) };
        let mut moves = moves(patches, patch, transition.target);
        moves.retain(|(entry, ..)| transition.moving.iter().all(|moving| moving.entry != *entry));
        let stubs = self.stubs.take(moves.len(), transition.word_check())?;
        let checkpoints = transition.checkpoints.as_ref();
        let new = |(moves, stub)| MovingFunction::new(patches, moves, stub, checkpoints);
        let moving: Vec<_> = moves.into_iter().zip(stubs).map(new).collect();
        transition.moving.extend(moving);
        PUBLISHED_RANGES.publish(&transition.ranges(patches, slices, &self.stubs));
        Ok(())
    }

    /// Removes the functions of an unloaded module from the transition.
    pub(crate) fn remove_module(&mut self, patches: &Patches, slices: &WrittenSlices, entries: &[Addr]) {
        let Some(transition) = &mut self.active else { return };
        let gone = transition.moving.extract_if(.., |moving| entries.contains(&moving.entry));
        let gone: Vec<_> = gone.map(|moving| moving.stub).collect();
        self.stubs.retire(gone.into_iter());
        PUBLISHED_RANGES.publish(&transition.ranges(patches, slices, &self.stubs));
    }

    /// Reverses the transition: threads that had migrated have to migrate back, and all others count as migrated.
    pub(crate) fn reverse(&mut self, patches: &Patches, slices: &WrittenSlices) -> Result<(), PatchError> {
        let Some(transition) = &mut self.active else { return Err(PatchError::NoTransition) };
        if transition.checkpoints.is_some() {
            checkpoints::reverse(transition, &self.stubs, patches, slices);
            return Ok(());
        }
        let held = hold(DEFAULT_LIMIT)?;
        exchange_words(&held, transition.unmigrated_word);
        transition.moving.iter().for_each(|moving| moving.stub.reverse());
        drop(held);
        transition.swap();
        PUBLISHED_RANGES.publish(&transition.ranges(patches, slices, &self.stubs));
        Ok(())
    }

    /// Checks the threads again that have not migrated. Returns whether all have migrated.
    pub(crate) fn try_again(&mut self, patches: &Patches, slices: &WrittenSlices) -> Result<bool, PatchError> {
        self.attempt(patches, slices, ThreadsToCheck::Unmigrated)
    }

    /// Counts all threads as migrated, wherever they are.
    pub(crate) fn force(&mut self, patches: &Patches, slices: &WrittenSlices) -> Result<bool, PatchError> {
        self.attempt(patches, slices, ThreadsToCheck::None)
    }
}

/// Updates the transition in the child of a fork. Of the threads that had not migrated, only the thread that has forked
/// can exist here. The worker thread does not exist. The worker is started on the first request, because most children
/// soon run another program. `before` was the thread's id before the fork. The caller holds the table's lock.
pub(crate) fn forked(before: i32) {
    worker_id::forked();
    roster::forked(before);
}
