//! Changes text while every other thread is held in a signal handler: where traps would kill, or are not enough.

use std::arch::x86_64::__cpuid;
use std::ops::ControlFlow;

use modload_edit::{Addr, Edit, EditSet};
use modload_threads::frames::{Stack, WalkError, know_process, stacks};
use modload_threads::{DEFAULT_LIMIT, Held, Tid, hold, name, status};

use crate::change::obstacle::joins;
use crate::change::spans::{self, Grouping, Pass, Side};
use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::poke_error::PokeError;
use crate::vocabulary::poked::{Because, Poked, Way};
use crate::writing::text_lock::TextLock;

/// Writes a batch while no other thread runs. From the first signal to the release, allocates nothing and takes no
/// lock.
pub(crate) fn write(lock: &mut TextLock<'_>, edits: &EditSet, because: Because) -> Result<Poked, PokeError> {
    chosen(lock, &[edits], because, |_| Some(0))
        .map(|poked| poked.unwrap_or(Poked { way: Way::Rendezvous(because), syncs: 0, writes: 0 }))
}

/// Holds every other thread, lets `choose` select one of several batches by the held threads, and writes that batch
/// while no other thread runs. Returns `None` if no batch was selected.
pub(crate) fn chosen(
    lock: &mut TextLock<'_>,
    batches: &[&EditSet],
    because: Because,
    choose: impl FnOnce(&Held) -> Option<usize>,
) -> Result<Option<Poked>, PokeError> {
    // With a debugger, spans could restore breakpoints that it has removed: a stale copy of the bytes between two edits would
    // be written.
    let traced = status(Tid::current()).ok().flatten().is_some_and(|status| status.tracer != 0);
    let grouping = if traced { Grouping::Alone } else { Grouping::Spans };
    // A walk finds the process's own functions only after this call.
    if batches.iter().any(|edits| edits.iter().any(|edit| joins(edit.old))) {
        know_process().map_err(PokeError::NoRows)?;
    }
    lock.reserve_buffer();
    let held = hold(DEFAULT_LIMIT).map_err(|source| PokeError::Threads { because, source })?;
    let found = batches.iter().find_map(|edits| obstructing(&held, edits));
    let edits = if found.is_none() { choose(&held).and_then(|chosen| batches.get(chosen)) } else { None };
    let written = match (found, edits) {
        (Some(found), _) => Err(found),
        (None, None) => Ok(None),
        (None, Some(edits)) => {
            spans::write(lock, edits, Pass::Whole, Side::New, grouping).map(Some).map_err(|failed| {
                let back = spans::write(lock, edits, Pass::Whole, Side::Old, grouping);
                back.map_or_else(Obstruction::Stuck, |_| Obstruction::Write(failed))
            })
        }
    };
    // This core discards the instructions that it has prefetched; the other cores do so when their threads are
    // released.
    __cpuid(0);
    drop(held);
    match written {
        Ok(writes) => Ok(writes.map(|writes| Poked { way: Way::Rendezvous(because), syncs: 1, writes })),
        Err(Obstruction::Inside { tid, rip, edit }) => {
            let name = name(tid).ok().flatten();
            Err(PokeError::Inside { tid, name, rip, at: edit.at, why: edit.why })
        }
        Err(Obstruction::NoWalk { tid, source }) => {
            let name = name(tid).ok().flatten();
            Err(PokeError::NoWalk { tid, name, source })
        }
        Err(Obstruction::Write(failed)) => Err(PokeError::Write(failed)),
        Err(Obstruction::Stuck(failed)) => {
            lock.stuck();
            Err(PokeError::Stuck(failed))
        }
    }
}

/// A failure that is found while no other thread runs, and reported after the release.
enum Obstruction<'e> {
    Inside { tid: Tid, rip: Addr, edit: Edit<'e> },
    NoWalk { tid: Tid, source: WalkError },
    Write(WriteFailed),
    Stuck(WriteFailed),
}

/// Returns a thread that is inside the bytes of an edit, behind the first byte: the thread would resume within the new
/// instruction.
fn obstructing<'e>(held: &Held, edits: &'e EditSet) -> Option<Obstruction<'e>> {
    if let Some(found) = held.threads().find_map(|thread| inside(thread.tid(), thread.rip(), edits)) {
        return Some(found);
    }
    if !edits.iter().any(|edit| joins(edit.old)) {
        // No thread can be inside of one instruction, whatever interrupted the thread.
        return None;
    }
    // A signal handler that is still running may also have interrupted the thread between two NOPs.
    stacks(held).find_map(|stack| interrupted(&stack, edits))
}

/// Returns a frame of a thread's stack that will resume within an edit. Return addresses do not count, because NOPs
/// call no function.
fn interrupted<'e>(stack: &Stack<'_>, edits: &'e EditSet) -> Option<Obstruction<'e>> {
    let tid = stack.tid();
    let mut found = None;
    let walked = stack.walk(|frame| {
        found = inside(tid, frame.pc, edits).filter(|_| frame.is_exact);
        if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    walked.map_or_else(|source| Some(Obstruction::NoWalk { tid, source }), |_| found)
}

fn inside(tid: Tid, rip: u64, edits: &EditSet) -> Option<Obstruction<'_>> {
    let rip = Addr::new(rip);
    edits.across(rip).map(|edit| Obstruction::Inside { tid, rip, edit })
}
