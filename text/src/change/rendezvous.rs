//! Changes text while every other thread is held in a signal handler: where traps would kill, or are not enough.

use std::ops::ControlFlow;

use modload_edit::{Addr, Edit, EditSet};
use modload_threads::frames::{Stack, WalkError, know_process, stacks};
use modload_threads::{DEFAULT_LIMIT, Held, Tid, hold, name};

use crate::change::obstacle::joins_nops;
use crate::change::spans::{self, BatchPass, EditVersion, Grouping};
use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::poke_error::PokeError;
use crate::vocabulary::poked::{PokeProtocol, Poked, TrapObstacle};
use crate::writing::text_lock::TextLock;
use crate::writing::x86_64::serialise_core;

/// Writes a batch while no other thread runs. From the first signal to the release, allocates nothing and takes no
/// lock.
pub(crate) fn write(lock: &mut TextLock<'_>, edits: &EditSet, obstacle: TrapObstacle) -> Result<Poked, PokeError> {
    write_chosen(lock, &[edits], obstacle, |_| Some(0))
        .map(|poked| poked.unwrap_or(Poked { protocol: PokeProtocol::Rendezvous(obstacle), syncs: 0, writes: 0 }))
}

/// Holds every other thread, lets `choose` select one of several batches by the held threads, and writes that batch
/// while no other thread runs. Returns `None` if no batch was selected.
pub(crate) fn write_chosen(
    lock: &mut TextLock<'_>,
    batches: &[&EditSet],
    obstacle: TrapObstacle,
    choose: impl FnOnce(&Held) -> Option<usize>,
) -> Result<Option<Poked>, PokeError> {
    let grouping = Grouping::for_this_process();
    // A walk finds the process's own functions only after this call.
    if batches.iter().any(|edits| edits.iter().any(|edit| joins_nops(edit.old))) {
        know_process().map_err(PokeError::NoUnwindRows)?;
    }
    lock.reserve_buffer();
    let held = hold(DEFAULT_LIMIT).map_err(|source| PokeError::Threads { obstacle, source })?;
    let found = batches.iter().find_map(|edits| find_thread_inside(&held, edits));
    let edits = if found.is_none() { choose(&held).and_then(|chosen| batches.get(chosen)) } else { None };
    let written = match (found, edits) {
        (Some(found), _) => Err(found),
        (None, None) => Ok(None),
        (None, Some(edits)) => spans::write_pass(lock, edits, BatchPass::WholeEdits, EditVersion::New, grouping)
            .map(Some)
            .map_err(|failed| {
                let reverted = spans::write_pass(lock, edits, BatchPass::WholeEdits, EditVersion::Old, grouping);
                reverted.map_or_else(FailureWhileHeld::Stuck, |_| FailureWhileHeld::Write(failed))
            }),
    };
    // This core discards the instructions that it has prefetched; the other cores do so when their threads are
    // released.
    serialise_core();
    drop(held);
    match written {
        Ok(writes) => Ok(writes.map(|writes| Poked { protocol: PokeProtocol::Rendezvous(obstacle), syncs: 1, writes })),
        Err(FailureWhileHeld::Inside { tid, rip, edit }) => {
            let name = name(tid).ok().flatten();
            Err(PokeError::Inside { tid, name, rip, at: edit.at, why: edit.why })
        }
        Err(FailureWhileHeld::NoWalk { tid, source }) => {
            let name = name(tid).ok().flatten();
            Err(PokeError::NoWalk { tid, name, source })
        }
        Err(FailureWhileHeld::Write(failed)) => Err(PokeError::Write(failed)),
        Err(FailureWhileHeld::Stuck(failed)) => {
            lock.set_stuck();
            Err(PokeError::Stuck(failed))
        }
    }
}

/// A failure that is found while no other thread runs, and reported after the release.
enum FailureWhileHeld<'e> {
    Inside { tid: Tid, rip: Addr, edit: Edit<'e> },
    NoWalk { tid: Tid, source: WalkError },
    Write(WriteFailed),
    Stuck(WriteFailed),
}

/// Returns a thread that is inside the bytes of an edit, behind the first byte: the thread would resume within the new
/// instruction.
fn find_thread_inside<'e>(held: &Held, edits: &'e EditSet) -> Option<FailureWhileHeld<'e>> {
    if let Some(found) = held.threads().find_map(|thread| inside_edit(thread.tid(), thread.rip(), edits)) {
        return Some(found);
    }
    if !edits.iter().any(|edit| joins_nops(edit.old)) {
        // No thread can be inside of one instruction, whatever interrupted the thread.
        return None;
    }
    // A signal handler that is still running may also have interrupted the thread between two NOPs.
    stacks(held).find_map(|stack| interrupted_frame(&stack, edits))
}

/// Returns a frame of a thread's stack that will resume within an edit. Return addresses do not count, because NOPs
/// call no function.
fn interrupted_frame<'e>(stack: &Stack<'_>, edits: &'e EditSet) -> Option<FailureWhileHeld<'e>> {
    let tid = stack.tid();
    let mut found = None;
    let walked = stack.walk(|frame| {
        found = inside_edit(tid, frame.pc, edits).filter(|_| frame.is_exact);
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    walked.map_or_else(|source| Some(FailureWhileHeld::NoWalk { tid, source }), |_| found)
}

fn inside_edit(tid: Tid, rip: u64, edits: &EditSet) -> Option<FailureWhileHeld<'_>> {
    let rip = Addr::new(rip);
    edits.across(rip).map(|edit| FailureWhileHeld::Inside { tid, rip, edit })
}
