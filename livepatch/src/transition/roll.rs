//! The thread roster of a checkpoint-only transition: the threads that existed when the transition began, and the code
//! that each of them must run.
//!
//! No thread is held, so no thread can write another thread's word (`modload_threads::word`): each writes its own.
//! Every such transition has a number. A word that carries the number says which code its thread must run, [`Way::Old`]
//! or [`Way::New`]. Any other word, for example a new thread's 0 or a word of an earlier transition, says nothing, and
//! a stub asks the roster: [`place`].
//!
//! The roster is authoritative. Threads that are on it as `Old` or `New` must run that code. Threads change from one
//! code to the other only at a checkpoint ([`come`]), by a compare-and-swap of their entry, which fails if the
//! transition was reversed meanwhile. A thread that is not on the roster was started later, has none of the functions
//! on its stack, and runs the code that it is first sent to. `Either` means: the thread was listed late, and it is not
//! known which code it must run. Such a thread counts as not migrated until it reaches a checkpoint.
//!
//! An entry is found by its thread's id. A thread with the id of an ended thread is mistaken for the ended thread,
//! until the end is noticed. The thread must then reach a checkpoint, which is never wrong.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use modload_threads::{ThreadState, Tid, status, word};

use super::pass::become_one;
use super::shown::{Looked, SHOWN};
use super::worker;
use super::{Blocked, Why};

/// The transition under way, for threads to read: [`NOTHING`], [`HOLDING`], or a [`Phase`].
pub(super) static UNDER_WAY: AtomicU64 = AtomicU64::new(NOTHING);
/// No transition.
pub(super) const NOTHING: u64 = 0;
/// A transition that holds threads and checks them anywhere.
pub(super) const HOLDING: u64 = 1;

/// The code that a thread runs, as of the start of the transition. A reversal does not exchange the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// The code before the transition.
    Old,
    /// The new code of the transition.
    New,
}

impl Way {
    pub(super) fn other(self) -> Way {
        if self == Way::Old { Way::New } else { Way::Old }
    }
}

/// The number of bits of a phase below the number of its transition.
const NUMBER_SHIFT: u32 = 24;
/// The number of bits below the count of reversals. The count wraps after four million reversals, which matters only to
/// a thread that stays between two instructions for so long.
const TURN_SHIFT: u32 = 2;
const TURNS: u64 = 1 << (NUMBER_SHIFT - TURN_SHIFT);
const LISTED: u64 = 2;
const TO_NEW: u64 = 1;

/// The state of a checkpoint-only transition, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Phase {
    number: u64,
    turn: u64,
    /// Whether the roster is available. Until then, a thread that is not on the roster runs the old code.
    is_listed: bool,
    to: Way,
}

impl Phase {
    /// Returns the phase of the transition under way, if it is checkpoint-only.
    pub(super) fn under_way() -> Option<Phase> {
        let bits = UNDER_WAY.load(Ordering::Acquire);
        (bits >> NUMBER_SHIFT != 0).then_some(Phase {
            number: bits >> NUMBER_SHIFT,
            turn: (bits >> TURN_SHIFT) % TURNS,
            is_listed: bits & LISTED != 0,
            to: if bits & TO_NEW != 0 { Way::New } else { Way::Old },
        })
    }

    fn publish(self) {
        let flags = if self.is_listed { LISTED } else { 0 } | if self.to == Way::New { TO_NEW } else { 0 };
        UNDER_WAY.store(self.number << NUMBER_SHIFT | self.turn << TURN_SHIFT | flags, Ordering::Release);
    }

    /// Returns the state of an entry in this phase.
    fn entry(self, standing: Standing) -> u64 {
        self.number << NUMBER_SHIFT | self.turn << TURN_SHIFT | standing.bits()
    }

    /// Returns the code that threads migrate to.
    pub(super) fn to(self) -> Way {
        self.to
    }

    /// Returns the word for a thread that runs this code.
    pub(super) fn word(self, way: Way) -> u64 {
        tag(self.number) + (u64::from(way == Way::New) << 32)
    }

    /// Returns the tag of the transition's stubs.
    pub(super) fn tag(self) -> u64 {
        self.word(Way::Old)
    }
}

/// The high half of the smallest tag. The tag is above every count that the stubs of transitions that hold threads keep
/// there. The low half of a tagged word is 0, so the word says nothing in such transitions.
const FIRST_TAG: u64 = 1 << 17;
/// The most checkpoint-only transitions in a process.
const MOST: u64 = (1 << 31) - FIRST_TAG;

/// Returns the tag of a transition. Tags grow, so words of earlier transitions are less than the words of a later one.
fn tag(number: u64) -> u64 {
    (FIRST_TAG + 2 * number) << 32
}

/// The code that a thread must run, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// The thread has ended.
    Gone,
    At(Way),
    Either,
}

impl Standing {
    fn bits(self) -> u64 {
        match self {
            Standing::Gone => 0,
            Standing::At(Way::Old) => 1,
            Standing::At(Way::New) => 2,
            Standing::Either => 3,
        }
    }

    fn of(state: u64) -> Standing {
        match state % 4 {
            0 => Standing::Gone,
            1 => Standing::At(Way::Old),
            2 => Standing::At(Way::New),
            _ => Standing::Either,
        }
    }
}

/// A thread on the roster.
#[derive(Debug)]
struct Entry {
    tid: AtomicI32,
    /// The value of [`Phase::entry`].
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
static LEVELS: [OnceLock<Box<[Entry]>>; 24] = [const { OnceLock::new() }; 24];
/// The number of entries.
static LEN: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

fn entries() -> impl Iterator<Item = &'static Entry> {
    LEVELS.iter().map_while(OnceLock::get).flatten().take(LEN.load(Ordering::Acquire))
}

/// Returns a thread's entry and its state, if the thread is on the roster of this transition.
fn find(phase: Phase, tid: i32) -> Option<(&'static Entry, u64)> {
    let of = |entry: &'static Entry| {
        let state = entry.state.load(Ordering::Acquire);
        let is_it = entry.tid.load(Ordering::Relaxed) == tid && state >> NUMBER_SHIFT == phase.number;
        (is_it && Standing::of(state) != Standing::Gone).then_some((entry, state))
    };
    entries().find_map(of)
}

/// Sets this thread's word for a stub, because the word does not say which code the thread must run.
pub(super) fn place(phase: Phase) {
    let before = word::own().load(Ordering::Relaxed);
    let way = match find(phase, Tid::current().get()).map(|(_, state)| Standing::of(state)) {
        Some(Standing::At(way)) => way,
        _ if phase.is_listed => phase.to,
        _ => Way::Old,
    };
    become_one(before, phase.word(way));
}

/// Migrates this thread at a checkpoint, if possible. Returns whether the thread has migrated.
pub(super) fn come(phase: Phase) -> bool {
    if !phase.is_listed {
        return false;
    }
    let (before, wanted) = (word::own().load(Ordering::Relaxed), phase.word(phase.to));
    let Some((entry, state)) = find(phase, Tid::current().get()) else {
        // The thread was started later. If its word already selects the other code, the transition is being reversed,
        // and its roster will include the thread.
        if before < phase.tag() {
            become_one(before, wanted);
        }
        return before < phase.tag() || before == wanted;
    };
    let over = phase.entry(Standing::At(phase.to));
    if state == over {
        become_one(before, wanted);
        return true;
    }
    match SHOWN.look(|_| false) {
        Looked::Clear => {}
        Looked::Inside(pc) => {
            entry.seen.store(pc, Ordering::Relaxed);
            return false;
        }
        Looked::Unwalked => {
            entry.seen.store(UNWALKED, Ordering::Relaxed);
            return false;
        }
        Looked::Changing => return false,
    }
    let expected = phase.entry(Standing::of(state));
    if entry.state.compare_exchange(expected, over, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return false;
    }
    become_one(before, wanted);
    if !is_anybody_left(phase) {
        worker::wake();
    }
    true
}

/// Returns whether a thread has not migrated.
fn is_left(entry: &Entry, phase: Phase) -> bool {
    let state = entry.state.load(Ordering::Acquire);
    let standing = Standing::of(state);
    state >> NUMBER_SHIFT == phase.number && standing != Standing::Gone && standing != Standing::At(phase.to)
}

// The following functions are for callers that hold the table's lock.

/// Starts a checkpoint-only transition. The transition's thread roster is not available until `listed`. Returns `None`
/// once transition numbers are used up.
pub(super) fn open() -> Option<Phase> {
    let number = LAST.load(Ordering::Relaxed) + 1;
    if number >= MOST {
        return None;
    }
    LAST.store(number, Ordering::Relaxed);
    LEN.store(0, Ordering::Release);
    let phase = Phase { number, turn: 0, is_listed: true, to: Way::New };
    Phase { is_listed: false, ..phase }.publish();
    Some(phase)
}

/// Lists the threads that existed when the sites had changed: they run the old code. From now on, a thread that is not
/// on the roster is a new thread.
pub(super) fn listed(phase: Phase, tids: &[Tid]) {
    tids.iter().for_each(|tid| enter(phase, *tid, Standing::At(Way::Old)));
    phase.publish();
}

/// Lists further threads that exist now. A thread that is not on the roster yet may run either code.
pub(super) fn listed_late(phase: Phase, tids: &[Tid]) {
    for tid in tids.iter().filter(|tid| find(phase, tid.get()).is_none()) {
        enter(phase, *tid, Standing::Either);
    }
}

fn enter(phase: Phase, tid: Tid, standing: Standing) {
    let mut number = LEN.load(Ordering::Relaxed);
    for (depth, level) in LEVELS.iter().enumerate() {
        let room = FIRST_LEVEL << depth;
        let new = || Entry { tid: AtomicI32::new(0), state: AtomicU64::new(0), seen: AtomicU64::new(0) };
        let level = level.get_or_init(|| std::iter::repeat_with(new).take(room).collect());
        if let Some(entry) = level.get(number) {
            // No thread mistakes the entry for another one in between: 0 belongs to no transition.
            entry.state.store(0, Ordering::Release);
            entry.tid.store(tid.get(), Ordering::Relaxed);
            entry.seen.store(0, Ordering::Relaxed);
            entry.state.store(phase.entry(standing), Ordering::Release);
            LEN.fetch_add(1, Ordering::Release);
            return;
        }
        number -= room;
    }
}

/// Reverses the transition: threads that had not migrated count as migrated, and the others do not. No thread migrates
/// until [`turned`] is called.
pub(super) fn turn(phase: Phase) -> Phase {
    let turned = Phase { turn: (phase.turn + 1) % TURNS, to: phase.to.other(), ..phase };
    Phase { is_listed: false, ..turned }.publish();
    for entry in entries() {
        let again = |state| {
            let standing = Standing::of(state);
            (state >> NUMBER_SHIFT == phase.number).then(|| turned.entry(standing))
        };
        let _turned = entry.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, again);
        entry.seen.store(0, Ordering::Relaxed);
    }
    turned
}

/// Completes a reversal: the ranges that threads look for on their stacks have been exchanged, too.
pub(super) fn turned(phase: Phase) {
    phase.publish();
}

/// Returns whether any thread has not migrated.
pub(super) fn is_anybody_left(phase: Phase) -> bool {
    entries().any(|entry| is_left(entry, phase))
}

/// Returns the threads that have not migrated, with the reasons as far as they are known.
pub(super) fn left(phase: Phase) -> Vec<Blocked> {
    let left = entries().filter(|entry| is_left(entry, phase));
    let blocked = left.map(|entry| {
        let why = match entry.seen.load(Ordering::Relaxed) {
            0 => Why::NoCheckpoint,
            UNWALKED => Why::Unwalked,
            pc => Why::Inside(pc),
        };
        Blocked { tid: Tid::new(entry.tid.load(Ordering::Relaxed)), why }
    });
    blocked.collect()
}

/// Removes ended threads from the threads that have not migrated.
pub(super) fn strike_ended(phase: Phase) {
    for entry in entries().filter(|entry| is_left(entry, phase)) {
        // A status that cannot be read proves nothing.
        let tid = Tid::new(entry.tid.load(Ordering::Relaxed));
        if status(tid).is_ok_and(|status| status.is_none_or(|status| status.state == ThreadState::Ended)) {
            let (before, gone) = (entry.state.load(Ordering::Acquire), phase.entry(Standing::Gone));
            let _struck = entry.state.compare_exchange(before, gone, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// Updates the roster in the child of a fork. Of the listed threads only this one exists, with a new id.
pub(super) fn forked(before: i32) {
    let Some(phase) = Phase::under_way() else { return };
    let standing = find(phase, before).map_or(Standing::Either, |(_, state)| Standing::of(state));
    LEN.store(0, Ordering::Release);
    enter(phase, Tid::current(), standing);
}

/// Announces a transition that holds threads and checks them anywhere.
pub(super) fn hold() {
    UNDER_WAY.store(HOLDING, Ordering::Release);
}

/// Announces that no transition is under way.
pub(super) fn close() {
    UNDER_WAY.store(NOTHING, Ordering::Release);
}
