//! Checkpoint-only transitions: threads migrate only at checkpoints. No thread is held, and none gets a signal.
//!
//! Sites are poked by traps, while threads run, to stubs that send all threads to the old code. When all sites lead to
//! stubs, the existing threads are listed (`roll.rs`): each of them must reach a checkpoint, or end. Threads that start
//! afterwards have migrated. When all threads have migrated, sites are poked to their final targets.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

use modload_edit::{Addr, wide};
use modload_ftrace::divert_unheld;
use modload_threads::{DEFAULT_LIMIT, Tasks, Tid};

use super::roll::{self, Phase, Way};
use super::shown::{MOST_SHOWN, SHOWN};
use super::{Moving, Whom, worker};
use crate::error::PatchError;
use crate::table::Table;

/// The state of a checkpoint-only transition.
#[derive(Debug)]
pub(crate) struct AtCheckpoints {
    pub(super) phase: Phase,
    /// Whether the roster has all threads that must migrate. While this is `false`, a thread may be neither listed nor
    /// migrated: it was started in the moment in which the roster was made or the transition was reversed.
    is_complete: bool,
    /// Whether the transition was ever reversed. If so, threads may have migrated without a checkpoint.
    was_turned: bool,
    /// The number of stubs that were retired when the transition started.
    retired: usize,
}

impl AtCheckpoints {
    /// Sets the targets of a function's stub.
    pub(super) fn leads(&self, moving: &Moving, home: Addr) {
        let (to, from) = (moving.to.unwrap_or(home), moving.from.unwrap_or(home));
        // A reversal does not change the meaning of a word.
        let (new, old) = if self.phase.to() == Way::New { (to, from) } else { (from, to) };
        moving.fork.leads(home, new, old);
        moving.fork.is_of(self.phase.tag());
    }
}

impl Table {
    /// Starts the prepared transition. Returns `true` if it is complete already.
    pub(super) fn begin_at_checkpoints(&mut self) -> Result<bool, PatchError> {
        let ranges = self.sight();
        if ranges.len() > MOST_SHOWN {
            return Err(PatchError::TooMany { ranges: ranges.len(), most: MOST_SHOWN });
        }
        let retired = self.stubs.retired();
        let nothing_goes = self.code_that_goes().next().is_none();
        let Some(transition) = &mut self.transition else { return Ok(true) };
        if transition.moving.is_empty() && nothing_goes {
            return Ok(true);
        }
        let phase = roll::open().ok_or(PatchError::Exhausted)?;
        transition.moving.iter().for_each(|moving| moving.fork.is_of(phase.tag()));
        SHOWN.show(&ranges);
        let forked = transition.diverts(|moving| Some(moving.fork.stub()));
        let there = match divert_unheld(&forked).map_err(PatchError::from).and_then(|()| everybody()) {
            Ok(there) => there,
            Err(error) => {
                self.take_back();
                return Err(error);
            }
        };
        roll::listed(phase, &there);
        transition.roll = Some(AtCheckpoints { phase, is_complete: false, was_turned: false, retired });
        // The transition has started. If the roster is not complete yet, a later attempt completes it.
        let over = self.attempt_at_checkpoints(Whom::Left).unwrap_or_else(|error| {
            tracing::warn!(%error, "a transition cannot be completed yet");
            false
        });
        if !over {
            worker::work();
        }
        Ok(over)
    }

    /// Redirects sites to the old code again, even if threads are in stubs.
    fn take_back(&mut self) {
        for moving in self.transition.iter().flat_map(|transition| &transition.moving) {
            let home = self.home(moving.entry);
            moving.fork.settles(home, moving.from.unwrap_or(home));
        }
        let Some(transition) = &mut self.transition else { return };
        if let Err(error) = divert_unheld(&transition.diverts(|moving| moving.from)) {
            // The stubs of these sites are not used again.
            tracing::error!(%error, "sites of a transition that could not begin stay where they are");
            transition.moving.clear();
        }
    }

    /// Completes the transition if all threads have migrated. For [`Whom::Nobody`] the threads are not checked. Returns
    /// whether the transition is complete.
    pub(super) fn attempt_at_checkpoints(&mut self, whom: Whom) -> Result<bool, PatchError> {
        let Some(transition) = &mut self.transition else { return Ok(true) };
        let Some(roll) = &mut transition.roll else { return Ok(true) };
        let (phase, retired, was_turned) = (roll.phase, roll.retired, roll.was_turned);
        if whom != Whom::Nobody {
            if !roll.is_complete {
                roll::listed_late(phase, &everybody()?);
                roll.is_complete = true;
            }
            roll::strike_ended(phase);
            if roll::is_anybody_left(phase) {
                return Ok(false);
            }
        }
        divert_unheld(&transition.diverts(|moving| moving.to))?;
        self.settle_stubs();
        roll::close();
        SHOWN.clear();
        // Each thread that could have been in a stub since before the transition has passed a checkpoint outside of all
        // stubs, or has ended.
        if whom != Whom::Nobody && !was_turned {
            self.stubs.recover_oldest(retired);
        }
        Ok(true)
    }

    /// Reverses the transition. No thread migrates between `roll::turn` and `roll::turned`.
    pub(super) fn turn_at_checkpoints(&mut self) {
        let Some(transition) = &mut self.transition else { return };
        transition.swap();
        let Some(roll) = &mut transition.roll else { return };
        let turned = roll::turn(roll.phase);
        (roll.phase, roll.is_complete, roll.was_turned) = (turned, false, true);
        SHOWN.show(&self.sight());
        roll::turned(turned);
    }
}

/// Returns all existing threads except the worker thread. Threads that start meanwhile may be included or not.
///
/// A pass over the thread list may miss threads. But the list is complete if two conditions hold: all listed threads
/// were known before the threads were counted, and the number of listed threads equals the count. The reason is that
/// each thread that was known before and is still listed was counted.
fn everybody() -> Result<Vec<Tid>, PatchError> {
    let begun = Instant::now();
    let list = |source| modload_threads::Error::List { source };
    let tasks = Tasks::open().map_err(list)?;
    let mut known = BTreeSet::new();
    loop {
        let (before, counted) = (known.len(), tasks.count().map_err(list)?);
        let mut listed = 0_u64;
        let _: ControlFlow<()> = tasks
            .each(|tid| {
                listed += 1;
                known.insert(tid);
                ControlFlow::Continue(())
            })
            .map_err(list)?;
        if known.len() == before && listed == counted {
            return Ok(known.into_iter().filter(|tid| !worker::is(*tid)).collect());
        }
        if begun.elapsed() >= DEFAULT_LIMIT {
            let (known, limit) = (wide(known.len()), DEFAULT_LIMIT);
            return Err(modload_threads::Error::Restless { known, counted, limit }.into());
        }
    }
}
