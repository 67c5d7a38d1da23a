//! Changes published text while threads run through it.
//!
//! An edit is one instruction before and one after. By traps, a batch of any size takes three synchronisations of all
//! cores (`docs/poke.md` has the argument, step by step):
//!
//! 1. every `old` is compared with the bytes at the site;
//! 2. INT3 at every site; all cores synchronise. From here on no thread begins an old instruction;
//! 3. the bytes behind every first byte; all cores synchronise. The signal handler gives each thread that hits an INT3
//!    the effect of the new instruction;
//! 4. every first byte; all cores synchronise. From here on no thread hits an INT3 of this batch.
//!
//! INT3 kills the process where SIGTRAP does not reach this crate's handler. In that case the batch is written while
//! every other thread is held in a signal handler: the rendezvous.
//!
//! A process of one thread has no other thread that could be in the middle of a site: the batch is written once, whole,
//! and this thread's core synchronises.

use std::thread;
use std::time::{Duration, Instant};

use modload_edit::{Edit, EditSet, InstructionEffect, is_one_instruction};
use modload_threads::{DEFAULT_LIMIT, Held, is_alone};

use crate::change::obstacle;
use crate::change::rendezvous;
use crate::change::spans::{self, BatchPass, EditVersion, Grouping};
use crate::change::writable::WritableRange;
use crate::handlers::batch::AnnouncedBatch;
use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::poke_error::PokeError;
use crate::vocabulary::poked::{PokeProtocol, Poked, TrapMask, TrapObstacle};
use crate::writing::cores;
use crate::writing::text_lock::TextLock;

/// Changes published text that threads may be running through, all edits as one batch. Linux's `text_poke_bp_batch`.
///
/// Each call that passes a site has the effect of the old instruction or of the new one, and that of the new one once
/// this function has returned.
///
/// # Errors
/// [`PokeError`]. Except for [`PokeError::Stuck`], every byte is as it was.
pub fn poke(lock: &mut TextLock<'_>, edits: &EditSet, mask: TrapMask) -> Result<Poked, PokeError> {
    check(lock, edits)?;
    match find_obstacle(edits, mask)? {
        // If the count of threads cannot be read, there may be other threads.
        None if is_alone().unwrap_or(false) => write_alone(lock, edits),
        None => write_by_traps(lock, edits),
        Some(obstacle) if mask == TrapMask::Unheld => Err(PokeError::Unheld { obstacle }),
        Some(obstacle) => rendezvous::write(lock, edits, obstacle),
    }
}

/// The time to wait until no thread blocks SIGTRAP, if no thread may be held: starting and ending a thread blocks all
/// signals for a moment.
const OBSTACLE_WAIT: Duration = DEFAULT_LIMIT;
/// The interval of these checks.
const OBSTACLE_INTERVAL: Duration = Duration::from_micros(200);

/// Returns the obstacle to traps, if there is one. With [`TrapMask::Unheld`], waits for some time until a temporary
/// obstacle is gone.
fn find_obstacle(edits: &EditSet, mask: TrapMask) -> Result<Option<TrapObstacle>, PokeError> {
    let begun = Instant::now();
    loop {
        let found = obstacle::find(edits, mask).map_err(PokeError::Inspect)?;
        let is_temporary = matches!(found, Some(TrapObstacle::Blocked { .. } | TrapObstacle::ThreadChurn));
        if mask != TrapMask::Unheld || !is_temporary || begun.elapsed() >= OBSTACLE_WAIT {
            return Ok(found);
        }
        thread::sleep(OBSTACLE_INTERVAL);
    }
}

/// Holds every other thread, lets `choose` select one of several batches by the held threads, and writes that batch
/// while no other thread runs. Returns `None` if no batch was selected and nothing was written.
///
/// `choose` runs while all other threads are held, and must not allocate or free memory, lock, print, log or panic
/// ([`modload_threads::Held`]).
///
/// # Errors
/// [`PokeError`], for any of the batches. Except for [`PokeError::Stuck`], every byte is as it was. If the error is
/// [`PokeError::Write`], `choose` has been called, else not.
pub fn poke_chosen(
    lock: &mut TextLock<'_>,
    batches: &[&EditSet],
    choose: impl FnOnce(&Held) -> Option<usize>,
) -> Result<Option<Poked>, PokeError> {
    batches.iter().try_for_each(|edits| check(lock, edits))?;
    rendezvous::write_chosen(lock, batches, TrapObstacle::Requested, choose)
}

/// Compares every `old`, and requires one instruction before and after.
fn check(lock: &TextLock<'_>, edits: &EditSet) -> Result<(), PokeError> {
    if lock.is_stuck() {
        return Err(PokeError::EarlierStuck);
    }
    let mut range = WritableRange::of_poke();
    for edit in edits.iter() {
        range.compare(&edit)?;
        if InstructionEffect::of(edit.at, edit.new).is_none() {
            return Err(unfit_error(&edit));
        }
        if !is_one_instruction(edit.at, edit.old) && !obstacle::joins_nops(edit.old) {
            return Err(PokeError::NotOneInstruction { at: edit.at, bytes: edit.old.to_vec(), why: edit.why });
        }
    }
    Ok(())
}

#[cold]
fn unfit_error(edit: &Edit<'_>) -> PokeError {
    let (at, bytes, why) = (edit.at, edit.new.to_vec(), edit.why);
    match is_one_instruction(at, &bytes) {
        true => PokeError::NotEmulated { at, bytes, why },
        false => PokeError::NotOneInstruction { at, bytes, why },
    }
}

/// Writes a batch in a process whose only thread is this one: no other thread can fetch a half-written instruction. A
/// signal handler of this thread runs before a write or after it, never in the middle of one, and an edit is never
/// divided between two writes. So the handler finds each site in its old or in its new state, and calls through the
/// site work. The handler cannot start a thread (signal-safety(7)), and only this thread could.
fn write_alone(lock: &mut TextLock<'_>, edits: &EditSet) -> Result<Poked, PokeError> {
    let mut whole = |version| {
        let writes = spans::write_pass(lock, edits, BatchPass::WholeEdits, version, Grouping::Spans)?;
        // The kernel has written through another address, so this core has to synchronise, like all cores to which this
        // thread moves.
        cores::synchronise()?;
        Ok(Poked { protocol: PokeProtocol::Alone, syncs: 1, writes })
    };
    let failed = match whole(EditVersion::New) {
        Ok(poked) => return Ok(poked),
        Err(failed) => failed,
    };
    let Err(failed) = whole(EditVersion::Old) else { return Err(PokeError::Write(failed)) };
    lock.set_stuck();
    Err(PokeError::Stuck(failed))
}

/// Writes a batch by the protocol at the top of this file.
fn write_by_traps(lock: &mut TextLock<'_>, edits: &EditSet) -> Result<Poked, PokeError> {
    let announced = AnnouncedBatch::new(lock, edits);
    let mut poked = Poked { protocol: PokeProtocol::Traps, syncs: 0, writes: 0 };
    match three_passes(lock, edits, EditVersion::New, &mut poked) {
        Ok(()) => Ok(poked),
        // The same protocol reverts the batch. Until that is done, a thread that hits a trap gets the effect of the new
        // instruction.
        Err(failed) => match three_passes(lock, edits, EditVersion::Old, &mut poked) {
            Ok(()) => Err(PokeError::Write(failed)),
            Err(failed) => {
                announced.keep_announced(edits.clone());
                lock.set_stuck();
                Err(PokeError::Stuck(failed))
            }
        },
    }
}

/// Writes the three passes, with a synchronisation of all cores after each.
fn three_passes(
    lock: &mut TextLock<'_>,
    edits: &EditSet,
    version: EditVersion,
    poked: &mut Poked,
) -> Result<(), WriteFailed> {
    for pass in [BatchPass::Traps, BatchPass::LaterBytes, BatchPass::FirstBytes] {
        poked.writes += spans::write_pass(lock, edits, pass, version, Grouping::Spans)?;
        cores::synchronise()?;
        poked.syncs += 1;
    }
    Ok(())
}
