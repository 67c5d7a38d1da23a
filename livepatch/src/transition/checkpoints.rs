//! Transitions in which threads go over at checkpoints alone. No thread is held, and none is sent a signal.
//!
//! Sites are poked by traps, while threads run, to stubs that lead everybody to the old code. When all sites lead there, the threads
//! that are there are listed (`roll.rs`): each of them has to come to a checkpoint, or to end. Threads that are born from then on
//! are over. When all are, sites are poked to where they lead for good.

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

/// What is particular to such a transition.
#[derive(Debug)]
pub(crate) struct AtCheckpoints {
    pub(super) phase: Phase,
    /// Whether all threads are known: those that are neither on the roll nor over were born in the moment in which it was made, or
    /// in which the transition was turned round.
    is_complete: bool,
    /// Whether it was ever turned round: then threads may be over that did not come to a checkpoint.
    was_turned: bool,
    /// So many stubs were retired when it began.
    retired: usize,
}

impl AtCheckpoints {
    /// Gives a function's stub its ways.
    pub(super) fn leads(&self, moving: &Moving, home: Addr) {
        let (to, from) = (moving.to.unwrap_or(home), moving.from.unwrap_or(home));
        // What a word says is not changed by turning round.
        let (new, old) = if self.phase.to() == Way::New { (to, from) } else { (from, to) };
        moving.fork.leads(home, new, old);
        moving.fork.is_of(self.phase.tag());
    }
}

impl Table {
    /// Begins the one that is there. Says whether it is over already.
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
        // It has begun; if not everybody is known yet, that is looked at again.
        let over = self.attempt_at_checkpoints(Whom::Left).unwrap_or_else(|error| {
            tracing::warn!(%error, "a transition cannot be completed yet");
            false
        });
        if !over {
            worker::work();
        }
        Ok(over)
    }

    /// Sites lead to the old code again, whoever is in a stub.
    fn take_back(&mut self) {
        for moving in self.transition.iter().flat_map(|transition| &transition.moving) {
            let home = self.home(moving.entry);
            moving.fork.settles(home, moving.from.unwrap_or(home));
        }
        let Some(transition) = &mut self.transition else { return };
        if let Err(error) = divert_unheld(&transition.diverts(|moving| moving.from)) {
            // Their stubs are not used again.
            tracing::error!(%error, "sites of a transition that could not begin stay where they are");
            transition.moving.clear();
        }
    }

    /// Looks whether all are over; if so, or if that is not asked, completes the transition. Says whether it is.
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
        // Everybody who could have been in a stub since before it began has come by a checkpoint, and was in none.
        if whom != Whom::Nobody && !was_turned {
            self.stubs.recover_oldest(retired);
        }
        Ok(true)
    }

    /// Turns one round: nobody goes over between the two.
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

/// All threads that are there, but for the one that looks after transitions. Others may begin meanwhile, and be among them or not.
///
/// A pass over the list may miss threads. But if all that it lists were known before the threads were counted, and are as many as were
/// counted, then those are all: what was known before and is still listed was counted.
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
