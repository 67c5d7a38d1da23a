//! The transition under way as data: its functions with their stubs, and the threads that have not migrated.

use std::ops::Range;

use modload_edit::Addr;
use modload_ftrace::Divert;

use super::blocked::Blocked;
use super::phase::RosterPhase;
use super::ranges::AddressRanges;
use super::roster;
use super::word::{CodeVersion, ThreadWord};
use crate::patch::{PatchId, PatchedFunction};
use crate::patches::Patches;
use crate::slices::WrittenSlices;
use crate::stub::{TwoWayStub, TwoWayStubs, WordCheck};
use crate::target::Target;

/// The transition under way.
#[derive(Debug)]
pub(crate) struct ActiveTransition {
    pub(crate) patch: PatchId,
    pub(crate) target: Target,
    pub(crate) moving: Vec<MovingFunction>,
    /// The threads that had not migrated at the last check, in transitions that hold threads.
    pub(super) blocked: Vec<Blocked>,
    /// The word for threads that have not migrated, in transitions that hold threads.
    pub(super) unmigrated_word: ThreadWord,
    /// The state of a checkpoint-only transition. `None` in transitions that hold threads.
    pub(super) checkpoints: Option<AtCheckpoints>,
}

/// The state of a checkpoint-only transition.
#[derive(Debug)]
pub(super) struct AtCheckpoints {
    pub(super) phase: RosterPhase,
    /// Whether the roster has all threads that must migrate. While this is `false`, a thread may be neither listed nor
    /// migrated: it was started in the moment in which the roster was made or the transition was reversed.
    pub(super) is_complete: bool,
    /// Whether the transition was ever reversed. If so, threads may have migrated without a checkpoint.
    pub(super) was_reversed: bool,
    /// The number of stubs that were retired when the transition started.
    pub(super) retired: usize,
}

/// A function in transition.
#[derive(Debug)]
pub(crate) struct MovingFunction {
    pub(crate) entry: Addr,
    pub(crate) stub: &'static TwoWayStub,
    /// The target for threads that have migrated, or `None` for the function itself.
    pub(super) to: Option<Addr>,
    /// The target for all other threads.
    pub(super) from: Option<Addr>,
    to_extent: Vec<Range<u64>>,
    from_extent: Vec<Range<u64>>,
}

/// A function, its code before and its code after. `None` is the function itself.
pub(super) type Move = (Addr, (Option<Addr>, AddressRanges), (Option<Addr>, AddressRanges));

/// Returns the functions whose newest code a transition changes, with the code before and after.
pub(super) fn moves(patches: &Patches, patch: PatchId, target: Target) -> Vec<Move> {
    let moves = |(entry, function): (Addr, &PatchedFunction)| {
        let newest = function.stack.len().checked_sub(1)?;
        if function.stack[newest].patch != patch {
            return None;
        }
        let with = patches.version(entry, Some(newest));
        let without = patches.version(entry, newest.checked_sub(1));
        Some(match target {
            Target::Patched => (entry, without, with),
            Target::Unpatched => (entry, with, without),
        })
    };
    patches.functions().filter_map(moves).collect()
}

impl MovingFunction {
    /// Makes a function in transition, and sets the targets of its stub.
    pub(super) fn new(
        patches: &Patches,
        (entry, from, to): Move,
        stub: &'static TwoWayStub,
        checkpoints: Option<&AtCheckpoints>,
    ) -> MovingFunction {
        let home = patches.home(entry);
        let ((from, from_extent), (to, to_extent)) = (from, to);
        let (new, old) = (to.unwrap_or(home), from.unwrap_or(home));
        match checkpoints.map(|checkpoints| checkpoints.phase) {
            Some(phase) => {
                // A reversal does not change the meaning of a word.
                let (new, old) = if phase.to == CodeVersion::New { (new, old) } else { (old, new) };
                stub.set_targets(home, new, old);
                stub.set_tag(phase.tag());
            }
            None => stub.set_targets(home, new, old),
        }
        MovingFunction { entry, stub, to, from, to_extent, from_extent }
    }
}

impl ActiveTransition {
    /// Returns the threads that have not migrated.
    pub(crate) fn blocked(&self) -> Vec<Blocked> {
        self.checkpoints
            .as_ref()
            .map_or_else(|| self.blocked.clone(), |checkpoints| roster::unmigrated(checkpoints.phase))
    }

    /// Returns the part of a thread's word that the transition's stubs compare.
    pub(super) fn word_check(&self) -> WordCheck {
        if self.checkpoints.is_some() { WordCheck::Tag } else { WordCheck::Half }
    }

    /// Returns the redirections of the functions' calls.
    pub(super) fn diverts(&self, to: impl Fn(&MovingFunction) -> Option<Addr>) -> Vec<Divert> {
        self.moving.iter().map(|moving| Divert { entry: moving.entry, to: to(moving) }).collect()
    }

    /// Returns the code of slices that is taken back when the transition is complete.
    pub(super) fn code_to_take_back(
        &self,
        patches: &Patches,
        slices: &WrittenSlices,
    ) -> impl Iterator<Item = Range<u64>> {
        let patch = patches.get(self.patch);
        patch.into_iter().flat_map(|patch| slices.code_to_take_back(patch, self.target))
    }

    /// Returns the ranges that must not be on the stack of a thread that migrates: functions that change, code that is
    /// taken back when all threads have migrated, and stubs. Sorted.
    pub(super) fn ranges(&self, patches: &Patches, slices: &WrittenSlices, stubs: &TwoWayStubs) -> AddressRanges {
        let mut ranges: AddressRanges =
            self.moving.iter().flat_map(|moving| moving.from_extent.iter().cloned()).collect();
        ranges.extend(self.code_to_take_back(patches, slices));
        ranges.extend(stubs.ranges());
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let more = next.start <= range.end;
            range.end = if more { range.end.max(next.end) } else { range.end };
            more
        });
        ranges
    }

    /// Sets the final targets of the stubs, for threads that reach a stub late.
    pub(super) fn settle_stubs(&self, patches: &Patches) {
        for moving in &self.moving {
            let home = patches.home(moving.entry);
            moving.stub.settle_on(home, moving.to.unwrap_or(home));
        }
    }

    /// Exchanges old and new code.
    pub(super) fn swap(&mut self) {
        self.target = self.target.other();
        for moving in &mut self.moving {
            std::mem::swap(&mut moving.from_extent, &mut moving.to_extent);
            std::mem::swap(&mut moving.to, &mut moving.from);
        }
    }
}
