//! Checkpoint-only transitions: threads migrate only at checkpoints. No thread is held, and none gets a signal.
//!
//! Sites are poked by traps, while threads run, to stubs that send all threads to the old code. When all sites lead to
//! stubs, the existing threads are listed (`roster.rs`): each of them must reach a checkpoint, or end. Threads that
//! start afterwards have migrated. When all threads have migrated, sites are poked to their final targets.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

use modload_edit::wide;
use modload_ftrace::divert_unheld;
use modload_threads::{DEFAULT_LIMIT, Tasks, Tid};

use super::active::{ActiveTransition, AtCheckpoints};
use super::held_check::ThreadsToCheck;
use super::phase::announce_end;
use super::ranges::{MOST_PUBLISHED, PUBLISHED_RANGES};
use super::roster;
use super::worker_id::is_worker;
use crate::error::PatchError;
use crate::patches::Patches;
use crate::slices::WrittenSlices;
use crate::stub::TwoWayStubs;

/// Starts the prepared transition. Returns `true` if it is complete already.
pub(super) fn begin(
    transition: &mut ActiveTransition,
    stubs: &mut TwoWayStubs,
    patches: &Patches,
    slices: &WrittenSlices,
) -> Result<bool, PatchError> {
    let ranges = transition.ranges(patches, slices, stubs);
    if ranges.len() > MOST_PUBLISHED {
        return Err(PatchError::TooMany { ranges: ranges.len(), most: MOST_PUBLISHED });
    }
    let retired = stubs.retired();
    let nothing_to_take_back = transition.code_to_take_back(patches, slices).next().is_none();
    if transition.moving.is_empty() && nothing_to_take_back {
        return Ok(true);
    }
    let phase = roster::open().ok_or(PatchError::Exhausted)?;
    transition.moving.iter().for_each(|moving| moving.stub.set_tag(phase.tag()));
    PUBLISHED_RANGES.publish(&ranges);
    let to_stubs = transition.diverts(|moving| Some(moving.stub.addr()));
    let threads = match divert_unheld(&to_stubs).map_err(PatchError::from).and_then(|()| all_threads()) {
        Ok(threads) => threads,
        Err(error) => {
            take_back(transition, patches);
            return Err(error);
        }
    };
    roster::list(phase, &threads);
    transition.checkpoints = Some(AtCheckpoints { phase, is_complete: false, was_reversed: false, retired });
    // The transition has started. If the roster is not complete yet, a later attempt completes it.
    let migrated = attempt(transition, stubs, patches, ThreadsToCheck::Unmigrated).unwrap_or_else(|error| {
        tracing::warn!(%error, "a transition cannot be completed yet");
        false
    });
    Ok(migrated)
}

/// Redirects sites to the old code again, even if threads are in stubs.
fn take_back(transition: &mut ActiveTransition, patches: &Patches) {
    for moving in &transition.moving {
        let home = patches.home(moving.entry);
        moving.stub.settle_on(home, moving.from.unwrap_or(home));
    }
    if let Err(error) = divert_unheld(&transition.diverts(|moving| moving.from)) {
        // The stubs of these sites are not used again.
        tracing::error!(%error, "call sites of a transition that could not begin could not be changed back");
        transition.moving.clear();
    }
}

/// Completes the transition if all threads have migrated. For [`ThreadsToCheck::None`] the threads are not checked.
/// Returns whether the transition is complete.
pub(super) fn attempt(
    transition: &mut ActiveTransition,
    stubs: &mut TwoWayStubs,
    patches: &Patches,
    threads: ThreadsToCheck,
) -> Result<bool, PatchError> {
    let Some(checkpoints) = &mut transition.checkpoints else { return Ok(true) };
    let (phase, retired, was_reversed) = (checkpoints.phase, checkpoints.retired, checkpoints.was_reversed);
    if threads != ThreadsToCheck::None {
        if !checkpoints.is_complete {
            roster::list_late(phase, &all_threads()?);
            checkpoints.is_complete = true;
        }
        roster::remove_ended(phase);
        if roster::has_unmigrated(phase) {
            return Ok(false);
        }
    }
    divert_unheld(&transition.diverts(|moving| moving.to))?;
    transition.settle_stubs(patches);
    announce_end();
    PUBLISHED_RANGES.clear();
    // Each thread that could have been in a stub since before the transition has passed a checkpoint outside of all
    // stubs, or has ended.
    if threads != ThreadsToCheck::None && !was_reversed {
        stubs.recover_oldest(retired);
    }
    Ok(true)
}

/// Reverses the transition. No thread migrates between `roster::reverse` and `roster::complete_reversal`.
pub(super) fn reverse(
    transition: &mut ActiveTransition,
    stubs: &TwoWayStubs,
    patches: &Patches,
    slices: &WrittenSlices,
) {
    transition.swap();
    let Some(checkpoints) = &mut transition.checkpoints else { return };
    let reversed = roster::reverse(checkpoints.phase);
    (checkpoints.phase, checkpoints.is_complete, checkpoints.was_reversed) = (reversed, false, true);
    PUBLISHED_RANGES.publish(&transition.ranges(patches, slices, stubs));
    roster::complete_reversal(reversed);
}

/// Returns all existing threads except the worker thread. Threads that start meanwhile may be included or not.
///
/// A pass over the thread list may miss threads. But the list is complete if two conditions hold: all listed threads
/// were known before the threads were counted, and the number of listed threads equals the count. The reason is that
/// each thread that was known before and is still listed was counted.
fn all_threads() -> Result<Vec<Tid>, PatchError> {
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
            return Ok(known.into_iter().filter(|tid| !is_worker(*tid)).collect());
        }
        if begun.elapsed() >= DEFAULT_LIMIT {
            let (known, limit) = (wide(known.len()), DEFAULT_LIMIT);
            return Err(modload_threads::Error::Restless { known, counted, limit }.into());
        }
    }
}
