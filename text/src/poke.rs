//! Changing published text while threads run through it.
//!
//! An edit is one instruction before and one after. By traps, a batch of any size takes three synchronisations of all
//! cores (`docs/poke.md` has the argument, step by step):
//!
//! 1. every `old` is compared with what is there;
//! 2. INT3 at every site; all cores synchronise. From here on nobody begins an old instruction;
//! 3. the bytes behind every first byte; all cores synchronise. Whoever meets an INT3 is made, by the signal handler, to
//!    do what the new instruction would;
//! 4. every first byte; all cores synchronise. From here on nobody meets an INT3 of ours.
//!
//! INT3 kills where SIGTRAP does not reach our handler. There the batch is written while every other thread is held in
//! a signal handler: the rendezvous.
//!
//! A process of one thread has nobody who could be in the middle of it: the batch is written once, whole, and this thread's
//! core synchronises.

use std::fmt;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use modload_edit::{Addr, Edit, EditOrigin, EditSet, InstructionEffect, disassembled, is_one_instruction};
use modload_threads::frames::{NoFinder, WalkError};
use modload_threads::{DEFAULT_LIMIT, Held, Name, Tid, is_alone};
use thiserror::Error;

use crate::batch::Announced;
use crate::obstacle::{self, Because};
use crate::region::Region;
use crate::spans::{self, Grouping, Pass, Side};
use crate::write::{TextLock, WriteFailed};
use crate::{rendezvous, sync};

/// What is known of SIGTRAP in the process's threads while a batch is poked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TrapMask {
    /// Looked at before each batch: that the handler is ours, that no debugger is attached, that no thread blocks
    /// SIGTRAP; else the rendezvous is taken. It is a snapshot, at some microseconds a thread, and blind to a mask, a
    /// handler or a debugger that changes during the batch.
    #[default]
    Checked,
    /// The embedder promises all three.
    Trusted,
    /// Nothing: always the rendezvous.
    Held,
    /// As [`TrapMask::Checked`], but never the rendezvous: where traps cannot be used, the batch is refused by name, and no
    /// thread is sent a signal. A thread that meets a trap gets its SIGTRAP from the processor.
    Unheld,
}

/// By which protocol a batch was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By traps, with three synchronisations.
    Traps,
    /// While every other thread was held.
    Rendezvous(Because),
    /// At once: there was no other thread.
    Alone,
}

/// How a batch was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Poked {
    /// By which protocol.
    pub way: Way,
    /// How often all cores were synchronised.
    pub syncs: u32,
    /// How many writes it took.
    pub writes: u32,
}

/// The published text is not what a batch expects it to be, or could not be written.
#[derive(Debug, Error)]
pub enum PokeError {
    /// Other bytes are there.
    #[error("{why} at {at}: expected {}, found {}", code(*.at, .expected), code(*.at, .found))]
    Mismatch {
        /// Where.
        at: Addr,
        /// `old` of the edit.
        expected: Vec<u8>,
        /// What is there.
        found: Vec<u8>,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// The edit lies outside, or reaches out of, what may be poked or filled.
    #[error("{why} at {at}: {len} bytes do not lie within the published text of one module or within registered text")]
    NotText {
        /// Where.
        at: Addr,
        /// How many bytes.
        len: usize,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// It must be one instruction.
    #[error("{why} at {at}: {} is not one instruction", code(*.at, .bytes))]
    NotOneInstruction {
        /// Where.
        at: Addr,
        /// `old` or `new` of the edit.
        bytes: Vec<u8>,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// A thread that meets the trap there cannot be made to do what the new instruction does.
    #[error("{why} at {at}: {} cannot be poked: only jmp, call, ret, NOPs and the zero of a static call can", code(*.at, .bytes))]
    NotEmulated {
        /// Where.
        at: Addr,
        /// `new` of the edit.
        bytes: Vec<u8>,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// Threads could not be looked at.
    #[error("looking at the process's threads")]
    Look(#[source] io::Error),
    /// Traps cannot be used, and threads could not be held.
    #[error("traps cannot be used, because {because}, and threads cannot be held")]
    Threads {
        /// Why traps cannot be used.
        because: Because,
        /// Who could not be held.
        source: modload_threads::Error,
    },
    /// Traps cannot be used, and nobody is to be held: [`TrapMask::Unheld`].
    #[error("traps cannot be used, because {because}, and no thread may be held")]
    Unheld {
        /// Why traps cannot be used.
        because: Because,
    },
    /// A thread stands where it would go on within the new instruction.
    #[error("{why} at {at}: thread {tid}{} stands at {rip}, within it", named(.name))]
    Inside {
        /// Which.
        tid: Tid,
        /// Its name, if it could be read.
        name: Option<Name>,
        /// Where it stands, or stood when a signal came.
        rip: Addr,
        /// Where the edit is.
        at: Addr,
        /// The edit's reason.
        why: EditOrigin,
    },
    /// Stacks cannot be walked, which joining NOPs takes.
    #[error("NOPs cannot be joined: stacks cannot be walked")]
    NoRows(#[source] NoFinder),
    /// Whether a thread was interrupted within an edit is not known.
    #[error("NOPs cannot be joined: what thread {tid}{} has on its stack is not known", named(.name))]
    NoWalk {
        /// Which.
        tid: Tid,
        /// Its name, if it could be read.
        name: Option<Name>,
        /// The frame.
        source: WalkError,
    },
    /// Nothing has been changed: what was written has been taken back.
    #[error("the batch could not be written, and has been taken back")]
    Write(#[from] WriteFailed),
    /// Some sites are changed, some are not, and traps that stand there lead on to the new code for ever.
    #[error("the batch could be neither written nor taken back; no other can be poked in this process")]
    Stuck(#[source] WriteFailed),
    /// An earlier batch is [`PokeError::Stuck`].
    #[error("an earlier batch could not be completed")]
    EarlierStuck,
}

fn named(name: &Option<Name>) -> String {
    name.map_or_else(String::new, |name| format!(" \"{name}\""))
}

/// Bytes and what they are as code.
fn code(at: Addr, bytes: &[u8]) -> impl fmt::Display {
    format!("{bytes:02x?} ({})", disassembled(at, bytes))
}

/// Changes published text that threads may be running through, all edits as one batch. Linux's `text_poke_bp_batch`.
///
/// Each call that goes through a site does what the old instruction does or what the new one does, and what the new one
/// does once this has returned.
///
/// # Errors
/// [`PokeError`]; but for [`PokeError::Stuck`], every byte is as it was.
pub fn poke(lock: &mut TextLock<'_>, edits: &EditSet, mask: TrapMask) -> Result<Poked, PokeError> {
    check(lock, edits)?;
    match obstacle(edits, mask)? {
        // If it cannot be asked, there may be others.
        None if is_alone().unwrap_or(false) => alone(lock, edits),
        None => by_traps(lock, edits),
        Some(because) if mask == TrapMask::Unheld => Err(PokeError::Unheld { because }),
        Some(because) => rendezvous::write(lock, edits, because),
    }
}

/// How long it is waited that nobody blocks SIGTRAP, where nobody is to be held: starting and ending a thread blocks all signals for a
/// moment.
const LIMIT: Duration = DEFAULT_LIMIT;
/// How often it is looked whether anybody still does.
const LOOK: Duration = Duration::from_micros(200);

/// What stands in the way of traps for as long as that is waited for.
fn obstacle(edits: &EditSet, mask: TrapMask) -> Result<Option<Because>, PokeError> {
    let begun = Instant::now();
    loop {
        let found = obstacle::find(edits, mask).map_err(PokeError::Look)?;
        let may_pass = matches!(found, Some(Because::Blocked { .. } | Because::Restless));
        if mask != TrapMask::Unheld || !may_pass || begun.elapsed() >= LIMIT {
            return Ok(found);
        }
        thread::sleep(LOOK);
    }
}

/// Holds every other thread and has one of several batches chosen by how they stand; writes that one while nobody runs. `None`:
/// none was chosen, and nothing was written.
///
/// `choose` runs while everybody is held, and must not take memory or give it back, lock, print, log or panic
/// ([`modload_threads::Held`]).
///
/// # Errors
/// [`PokeError`], whichever of the batches it concerns; but for [`PokeError::Stuck`], every byte is as it was. After
/// [`PokeError::Write`] `choose` has been called, else not.
pub fn poke_chosen(
    lock: &mut TextLock<'_>,
    batches: &[&EditSet],
    choose: impl FnOnce(&Held) -> Option<usize>,
) -> Result<Option<Poked>, PokeError> {
    batches.iter().try_for_each(|edits| check(lock, edits))?;
    rendezvous::chosen(lock, batches, Because::Asked, choose)
}

/// Compares every `old`, and demands one instruction before and after.
fn check(lock: &TextLock<'_>, edits: &EditSet) -> Result<(), PokeError> {
    if lock.is_stuck() {
        return Err(PokeError::EarlierStuck);
    }
    let mut region = Region::poked();
    for edit in edits.iter() {
        region.compare(&edit)?;
        if InstructionEffect::of(edit.at, edit.new).is_none() {
            return Err(unfit(&edit));
        }
        if !is_one_instruction(edit.at, edit.old) && !obstacle::joins(edit.old) {
            return Err(PokeError::NotOneInstruction { at: edit.at, bytes: edit.old.to_vec(), why: edit.why });
        }
    }
    Ok(())
}

#[cold]
fn unfit(edit: &Edit<'_>) -> PokeError {
    let (at, bytes, why) = (edit.at, edit.new.to_vec(), edit.why);
    match is_one_instruction(at, &bytes) {
        true => PokeError::NotEmulated { at, bytes, why },
        false => PokeError::NotOneInstruction { at, bytes, why },
    }
}

/// Writes a batch in a process whose only thread this is: with nobody else, nobody fetches an instruction that is half written. A
/// signal handler of this thread runs before a write or after it, never in the middle of one, and an edit is never divided
/// between two; so it finds each site as it was or as it is to be, and what it calls goes through. It cannot begin a thread
/// (signal-safety(7)), and only this thread could.
fn alone(lock: &mut TextLock<'_>, edits: &EditSet) -> Result<Poked, PokeError> {
    let mut whole = |side| {
        let writes = spans::write(lock, edits, Pass::Whole, side, Grouping::Spans)?;
        // The kernel has written by another address: the core has to be told, like all others that this thread moves to.
        sync::all_cores().map_err(|source| WriteFailed::Sync { source })?;
        Ok(Poked { way: Way::Alone, syncs: 1, writes })
    };
    let failed = match whole(Side::New) {
        Ok(poked) => return Ok(poked),
        Err(failed) => failed,
    };
    let Err(failed) = whole(Side::Old) else { return Err(PokeError::Write(failed)) };
    lock.stuck();
    Err(PokeError::Stuck(failed))
}

/// The protocol at the top of this file.
fn by_traps(lock: &mut TextLock<'_>, edits: &EditSet) -> Result<Poked, PokeError> {
    let announced = Announced::new(lock, edits);
    let mut poked = Poked { way: Way::Traps, syncs: 0, writes: 0 };
    match trap_by_trap(lock, edits, Side::New, &mut poked) {
        Ok(()) => Ok(poked),
        // Back again by the same protocol. Until it is done, who meets a trap does what the new instruction does.
        Err(failed) => match trap_by_trap(lock, edits, Side::Old, &mut poked) {
            Ok(()) => Err(PokeError::Write(failed)),
            Err(failed) => {
                announced.forget(edits.clone());
                lock.stuck();
                Err(PokeError::Stuck(failed))
            }
        },
    }
}

fn trap_by_trap(lock: &mut TextLock<'_>, edits: &EditSet, side: Side, poked: &mut Poked) -> Result<(), WriteFailed> {
    for pass in [Pass::Traps, Pass::Tails, Pass::Firsts] {
        poked.writes += spans::write(lock, edits, pass, side, Grouping::Spans)?;
        sync::all_cores().map_err(|source| WriteFailed::Sync { source })?;
        poked.syncs += 1;
    }
    Ok(())
}
