//! The roll of a transition in which threads go over at checkpoints alone: who was there when it began, and where each belongs.
//!
//! Nobody is held, so nobody can write another thread's word (`modload_threads::word`): each writes its own. Every such transition
//! has a number, and a word that carries it says where its thread belongs: it is [`Way::Old`]'s or [`Way::New`]'s for that
//! number. Any other word, a new thread's 0 or one of an earlier transition, says nothing, and a stub asks here: [`place`].
//!
//! The truth is the roll. Threads that are on it as `Old` or `New` belong there. They come from one to the other at a
//! checkpoint only ([`come`]), by a compare-and-swap of their entry, which fails if the transition was turned round meanwhile. One that is not
//! on it was born since, has none of the functions on its stack, and belongs where it is placed first. `Either`: of one that
//! has been listed late it is not known which of the two, and it counts as not over until it comes to a checkpoint.
//!
//! An entry is found by its thread's id. A thread that gets the id of one that has ended is taken for that one, until it is noticed
//! that the id was gone: it then has to come to a checkpoint, which is never wrong.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

use modload_threads::{State, Tid, status, word};

use super::pass::become_one;
use super::shown::{Looked, SHOWN};
use super::worker;
use super::{Blocked, Why};

/// What is under way, for threads: [`NOTHING`], [`HOLDING`], or a [`Phase`].
pub(super) static UNDER_WAY: AtomicU64 = AtomicU64::new(NOTHING);
/// No transition.
pub(super) const NOTHING: u64 = 0;
/// A transition in which threads are looked at wherever they are.
pub(super) const HOLDING: u64 = 1;

/// Which code a thread runs: by the beginning of the transition. Turning round does not rename them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// What was there.
    Old,
    /// What the transition brought.
    New,
}

impl Way {
    pub(super) fn other(self) -> Way {
        if self == Way::Old { Way::New } else { Way::Old }
    }
}

/// Bits of a phase below the number of its transition.
const NUMBER_SHIFT: u32 = 24;
/// Bits below those that count how often it was turned round. That they begin anew after four million times matters to who stands
/// between two instructions for so long.
const TURN_SHIFT: u32 = 2;
const TURNS: u64 = 1 << (NUMBER_SHIFT - TURN_SHIFT);
const LISTED: u64 = 2;
const TO_NEW: u64 = 1;

/// What goes on, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Phase {
    number: u64,
    turn: u64,
    /// Whether the roll is there: before, everybody belongs to the old code.
    is_listed: bool,
    to: Way,
}

impl Phase {
    /// That of the transition under way, if threads go over at checkpoints in it.
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

    /// The state of an entry in it.
    fn entry(self, standing: Standing) -> u64 {
        self.number << NUMBER_SHIFT | self.turn << TURN_SHIFT | standing.bits()
    }

    /// Where it leads.
    pub(super) fn to(self) -> Way {
        self.to
    }

    /// What the word of a thread says in it.
    pub(super) fn word(self, way: Way) -> u64 {
        tag(self.number) + (u64::from(way == Way::New) << 32)
    }

    /// The tag of its stubs.
    pub(super) fn tag(self) -> u64 {
        self.word(Way::Old)
    }
}

/// The high half of a word: above all that stubs of transitions in which threads are held count down there. The low half of such a
/// word is 0, so that it says nothing there.
const FIRST_TAG: u64 = 1 << 17;
/// How many such transitions there can be in a process.
const MOST: u64 = (1 << 31) - FIRST_TAG;

/// Tags grow, so that words of earlier transitions are less than that of a later one.
fn tag(number: u64) -> u64 {
    (FIRST_TAG + 2 * number) << 32
}

/// Where a thread belongs, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// It has ended.
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

/// A thread of the roll.
#[derive(Debug)]
struct Entry {
    tid: AtomicI32,
    /// [`Phase::entry`].
    state: AtomicU64,
    /// What its last checkpoint saw: nothing yet, [`UNWALKED`], or where in a function that changes it goes on.
    seen: AtomicU64,
}

/// It came to a checkpoint, and could not walk its stack. No frame goes on at this address.
const UNWALKED: u64 = 1;

/// Entries of the first level; each other one has twice as many as that before it. A level stays for ever, and serves all
/// transitions: threads read them at any moment.
const FIRST_LEVEL: usize = 64;
static LEVELS: [OnceLock<Box<[Entry]>>; 24] = [const { OnceLock::new() }; 24];
/// How many entries there are.
static LEN: AtomicUsize = AtomicUsize::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

fn entries() -> impl Iterator<Item = &'static Entry> {
    LEVELS.iter().map_while(OnceLock::get).flatten().take(LEN.load(Ordering::Acquire))
}

/// The entry of a thread and its state, if it is on the roll of this transition.
fn find(phase: Phase, tid: i32) -> Option<(&'static Entry, u64)> {
    let of = |entry: &'static Entry| {
        let state = entry.state.load(Ordering::Acquire);
        let is_it = entry.tid.load(Ordering::Relaxed) == tid && state >> NUMBER_SHIFT == phase.number;
        (is_it && Standing::of(state) != Standing::Gone).then_some((entry, state))
    };
    entries().find_map(of)
}

/// This thread's word says nothing, and a stub must know where it belongs.
pub(super) fn place(phase: Phase) {
    let before = word::own().load(Ordering::Relaxed);
    let way = match find(phase, Tid::current().get()).map(|(_, state)| Standing::of(state)) {
        Some(Standing::At(way)) => way,
        _ if phase.is_listed => phase.to,
        _ => Way::Old,
    };
    become_one(before, phase.word(way));
}

/// This thread has come to a checkpoint; says whether it is over.
pub(super) fn come(phase: Phase) -> bool {
    if !phase.is_listed {
        return false;
    }
    let (before, wanted) = (word::own().load(Ordering::Relaxed), phase.word(phase.to));
    let Some((entry, state)) = find(phase, Tid::current().get()) else {
        // Born since. If it belongs elsewhere already, the transition is being turned round, and will have it on its roll.
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

/// Whether a thread is not over.
fn is_left(entry: &Entry, phase: Phase) -> bool {
    let state = entry.state.load(Ordering::Acquire);
    let standing = Standing::of(state);
    state >> NUMBER_SHIFT == phase.number && standing != Standing::Gone && standing != Standing::At(phase.to)
}

// What follows is for who has the table.

/// A transition begins whose roll is not there yet. `None`: there were too many.
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

/// The threads that were there when the sites had changed: they belong to the old code. From now on, who is not on the roll is new.
pub(super) fn listed(phase: Phase, tids: &[Tid]) {
    tids.iter().for_each(|tid| enter(phase, *tid, Standing::At(Way::Old)));
    phase.publish();
}

/// Threads that are there now: who is not on the roll yet may belong here or there.
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
            // Nobody takes it for another's in between: 0 is of no transition.
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

/// The transition is turned round: who had not gone over is over now, and the others are not. Nobody goes over from here on, until it
/// is [`turned`].
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

/// What threads look for on their stacks has been turned round, too.
pub(super) fn turned(phase: Phase) {
    phase.publish();
}

/// Whether anybody is not over.
pub(super) fn is_anybody_left(phase: Phase) -> bool {
    entries().any(|entry| is_left(entry, phase))
}

/// Who is not over, and why, as far as it is known.
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

/// Strikes those off that have ended, of those who are not over.
pub(super) fn strike_ended(phase: Phase) {
    for entry in entries().filter(|entry| is_left(entry, phase)) {
        // What cannot be read says nothing.
        let tid = Tid::new(entry.tid.load(Ordering::Relaxed));
        if status(tid).is_ok_and(|status| status.is_none_or(|status| status.state == State::Ended)) {
            let (before, gone) = (entry.state.load(Ordering::Acquire), phase.entry(Standing::Gone));
            let _struck = entry.state.compare_exchange(before, gone, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// In the child of a fork: of those on the roll this thread alone is there, under another id than before.
pub(super) fn forked(before: i32) {
    let Some(phase) = Phase::under_way() else { return };
    let standing = find(phase, before).map_or(Standing::Either, |(_, state)| Standing::of(state));
    LEN.store(0, Ordering::Release);
    enter(phase, Tid::current(), standing);
}

/// A transition begins in which threads are looked at wherever they are.
pub(super) fn hold() {
    UNDER_WAY.store(HOLDING, Ordering::Release);
}

/// No transition is under way.
pub(super) fn close() {
    UNDER_WAY.store(NOTHING, Ordering::Release);
}
