//! The thread roster of a checkpoint-only transition: the threads that existed when the transition began, and the code
//! that each of them must run.
//!
//! No thread is held, so no thread can write another thread's word (`modload_threads::word`): each writes its own.
//! Every such transition has a number. A word that carries the number says which code its thread must run,
//! [`CodeVersion::Old`] or [`CodeVersion::New`]. Any other word, for example a new thread's 0 or a word of an earlier
//! transition, says nothing, and a stub asks the roster: [`set_own_word`].
//!
//! The roster is authoritative. Threads that are on it as `Old` or `New` must run that code. Threads change from one
//! code to the other only at a checkpoint ([`migrate_at_checkpoint`]), by a compare-and-swap of their entry, which
//! fails if the transition was reversed meanwhile. A thread that is not on the roster was started later, has none of
//! the functions on its stack, and runs the code that it is first sent to. `Either` means: the thread was listed late,
//! and it is not known which code it must run. Such a thread counts as not migrated until it reaches a checkpoint.
//!
//! An entry is found by its thread's id. A thread with the id of an ended thread is mistaken for the ended thread,
//! until the end is noticed. The thread must then reach a checkpoint, which is never wrong.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use modload_threads::{ThreadState, Tid, status};

use super::blocked::{BlockReason, Blocked};
use super::events;
use super::phase::{RosterPhase, STATE_BITS};
use super::ranges::{OwnStackCheck, PUBLISHED_RANGES};
use super::word::{CodeVersion, ThreadWord};

/// The code that a thread must run, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RosterState {
    /// The thread has ended.
    Gone,
    At(CodeVersion),
    Either,
}

impl RosterState {
    fn bits(self) -> u64 {
        match self {
            RosterState::Gone => 0,
            RosterState::At(CodeVersion::Old) => 1,
            RosterState::At(CodeVersion::New) => 2,
            RosterState::Either => 3,
        }
    }

    fn of(state: u64) -> RosterState {
        match state % (1 << STATE_BITS) {
            0 => RosterState::Gone,
            1 => RosterState::At(CodeVersion::Old),
            2 => RosterState::At(CodeVersion::New),
            _ => RosterState::Either,
        }
    }
}

/// Returns the state of an entry in a phase.
fn entry_state(phase: RosterPhase, roster_state: RosterState) -> u64 {
    phase.bits() | roster_state.bits()
}

/// A thread on the roster.
#[derive(Debug)]
struct RosterEntry {
    tid: AtomicI32,
    /// The value of [`entry_state`].
    state: AtomicU64,
    /// The result of the thread's last checkpoint: 0 for no result yet, [`UNWALKED`], or the address in a function that
    /// changes.
    seen: AtomicU64,
}

/// The thread reached a checkpoint but could not walk its stack. No frame has this address.
const UNWALKED: u64 = 1;

/// The number of entries of the first level. Each further level has twice as many entries as the one before. A level is
/// never freed and serves all transitions, because threads may read it at any moment.
const FIRST_LEVEL: usize = 64;
static LEVELS: [OnceLock<Box<[RosterEntry]>>; 24] = [const { OnceLock::new() }; 24];
/// The number of entries.
static LEN: AtomicUsize = AtomicUsize::new(0);

fn entries() -> impl Iterator<Item = &'static RosterEntry> {
    LEVELS.iter().map_while(OnceLock::get).flatten().take(LEN.load(Ordering::Acquire))
}

/// Returns a thread's entry and its state, if the thread is on the roster of this transition.
fn find(phase: RosterPhase, tid: i32) -> Option<(&'static RosterEntry, u64)> {
    let of = |entry: &'static RosterEntry| {
        let state = entry.state.load(Ordering::Acquire);
        let is_it = entry.tid.load(Ordering::Relaxed) == tid && phase.is_same_transition(state);
        (is_it && RosterState::of(state) != RosterState::Gone).then_some((entry, state))
    };
    entries().find_map(of)
}

/// Sets this thread's word for a stub, because the word does not say which code the thread must run.
pub(super) fn set_own_word(phase: RosterPhase) {
    let before = ThreadWord::of_this_thread();
    let version = match find(phase, Tid::current().get()).map(|(_, state)| RosterState::of(state)) {
        Some(RosterState::At(version)) => version,
        _ if phase.is_listed => phase.to,
        _ => CodeVersion::Old,
    };
    before.replace_own(phase.word(version));
}

/// Migrates this thread at a checkpoint, if possible. Returns whether the thread has migrated.
pub(super) fn migrate_at_checkpoint(phase: RosterPhase) -> bool {
    if !phase.is_listed {
        return false;
    }
    let (before, wanted) = (ThreadWord::of_this_thread(), phase.word(phase.to));
    let Some((entry, state)) = find(phase, Tid::current().get()) else {
        // The thread was started later. If its word already selects the other code, the transition is being reversed,
        // and its roster will include the thread.
        if phase.is_newer_than(before) {
            before.replace_own(wanted);
        }
        return phase.is_newer_than(before) || before == wanted;
    };
    let migrated = entry_state(phase, RosterState::At(phase.to));
    if state == migrated {
        before.replace_own(wanted);
        return true;
    }
    match PUBLISHED_RANGES.check_own_stack(|_| false) {
        OwnStackCheck::Clear => {}
        OwnStackCheck::Inside(pc) => {
            entry.seen.store(pc, Ordering::Relaxed);
            return false;
        }
        OwnStackCheck::Unwalked => {
            entry.seen.store(UNWALKED, Ordering::Relaxed);
            return false;
        }
        OwnStackCheck::Changing => return false,
    }
    let expected = entry_state(phase, RosterState::of(state));
    if entry.state.compare_exchange(expected, migrated, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return false;
    }
    before.replace_own(wanted);
    if !has_unmigrated(phase) {
        events::report_migration();
    }
    true
}

/// Returns whether a thread has not migrated.
fn is_unmigrated(entry: &RosterEntry, phase: RosterPhase) -> bool {
    let state = entry.state.load(Ordering::Acquire);
    let roster_state = RosterState::of(state);
    phase.is_same_transition(state) && roster_state != RosterState::Gone && roster_state != RosterState::At(phase.to)
}

// The following functions are for callers that hold the table's lock.

/// Starts a checkpoint-only transition. The transition's thread roster is not available until [`list`]. Returns `None`
/// once transition numbers are used up.
pub(super) fn open() -> Option<RosterPhase> {
    let phase = RosterPhase::of_new_transition()?;
    LEN.store(0, Ordering::Release);
    phase.publish_unlisted();
    Some(phase)
}

/// Lists the threads that existed when the sites had changed: they run the old code. From now on, a thread that is not
/// on the roster is a new thread.
pub(super) fn list(phase: RosterPhase, tids: &[Tid]) {
    tids.iter().for_each(|tid| add(phase, *tid, RosterState::At(CodeVersion::Old)));
    phase.publish();
}

/// Lists further threads that exist now. A thread that is not on the roster yet may run either code.
pub(super) fn list_late(phase: RosterPhase, tids: &[Tid]) {
    for tid in tids.iter().filter(|tid| find(phase, tid.get()).is_none()) {
        add(phase, *tid, RosterState::Either);
    }
}

fn add(phase: RosterPhase, tid: Tid, roster_state: RosterState) {
    let mut number = LEN.load(Ordering::Relaxed);
    for (depth, level) in LEVELS.iter().enumerate() {
        let room = FIRST_LEVEL << depth;
        let new = || RosterEntry { tid: AtomicI32::new(0), state: AtomicU64::new(0), seen: AtomicU64::new(0) };
        let level = level.get_or_init(|| std::iter::repeat_with(new).take(room).collect());
        if let Some(entry) = level.get(number) {
            // No thread mistakes the entry for another one in between: 0 belongs to no transition.
            entry.state.store(0, Ordering::Release);
            entry.tid.store(tid.get(), Ordering::Relaxed);
            entry.seen.store(0, Ordering::Relaxed);
            entry.state.store(entry_state(phase, roster_state), Ordering::Release);
            LEN.fetch_add(1, Ordering::Release);
            return;
        }
        number -= room;
    }
}

/// Reverses the transition: threads that had not migrated count as migrated, and the others do not. No thread migrates
/// until [`complete_reversal`] is called.
pub(super) fn reverse(phase: RosterPhase) -> RosterPhase {
    let reversed = phase.reversed();
    reversed.publish_unlisted();
    for entry in entries() {
        let again = |state| {
            let roster_state = RosterState::of(state);
            phase.is_same_transition(state).then(|| entry_state(reversed, roster_state))
        };
        let _reversed = entry.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, again);
        entry.seen.store(0, Ordering::Relaxed);
    }
    reversed
}

/// Completes a reversal: the ranges that threads look for on their stacks have been exchanged, too.
pub(super) fn complete_reversal(phase: RosterPhase) {
    phase.publish();
}

/// Returns whether any thread has not migrated.
pub(super) fn has_unmigrated(phase: RosterPhase) -> bool {
    entries().any(|entry| is_unmigrated(entry, phase))
}

/// Returns the threads that have not migrated, with the reasons as far as they are known.
pub(super) fn unmigrated(phase: RosterPhase) -> Vec<Blocked> {
    let left = entries().filter(|entry| is_unmigrated(entry, phase));
    let blocked = left.map(|entry| {
        let why = match entry.seen.load(Ordering::Relaxed) {
            0 => BlockReason::NoCheckpoint,
            UNWALKED => BlockReason::Unwalked,
            pc => BlockReason::Inside(pc),
        };
        Blocked { tid: Tid::new(entry.tid.load(Ordering::Relaxed)), why }
    });
    blocked.collect()
}

/// Removes ended threads from the threads that have not migrated.
pub(super) fn remove_ended(phase: RosterPhase) {
    for entry in entries().filter(|entry| is_unmigrated(entry, phase)) {
        // A status that cannot be read proves nothing.
        let tid = Tid::new(entry.tid.load(Ordering::Relaxed));
        if status(tid).is_ok_and(|status| status.is_none_or(|status| status.state == ThreadState::Ended)) {
            let (before, gone) = (entry.state.load(Ordering::Acquire), entry_state(phase, RosterState::Gone));
            let _removed = entry.state.compare_exchange(before, gone, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// Updates the roster in the child of a fork. Of the listed threads only this one exists, with a new id.
pub(super) fn forked(before: i32) {
    let Some(phase) = RosterPhase::under_way() else { return };
    let roster_state = find(phase, before).map_or(RosterState::Either, |(_, state)| RosterState::of(state));
    LEN.store(0, Ordering::Release);
    add(phase, Tid::current(), roster_state);
}
