//! Transitions: each thread goes over to the new code when it is in none of the functions that change.
//!
//! Everybody is held for a moment, and each stack is walked. Threads in whose stacks none of the functions is are over; if these are
//! all, sites become jumps to the new code in that same moment, and that was it. Otherwise sites become jumps to stubs, which send
//! a thread by its word: to the old code as long as it has not gone over. Who has not is looked at again: when it comes by a
//! stub, at a checkpoint, and by a thread of ours that holds everybody now and then, the more seldom the longer it takes. New threads
//! begin with a word of 0: they are over.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use modload_edit::Addr;
use modload_ftrace::{Divert, divert_chosen, event_code};
use modload_threads::frames::{Ended, Frame, Stack, WalkError, Walker, know_process, stacks, walk_here};
use modload_threads::{DEFAULT_LIMIT, Held, Tasks, Tid, hold, word};
use rustix::thread::futex;

use crate::error::PatchError;
use crate::stub::Fork;
use crate::table::{PatchId, Table, table};

/// Where a transition leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Linux's KLP_PATCHED.
    Patched,
    /// Linux's KLP_UNPATCHED.
    Unpatched,
}

/// A function in transition.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) entry: Addr,
    pub(crate) fork: &'static Fork,
    /// For threads that are over; `None` for the function itself.
    pub(crate) to: Option<Addr>,
    /// For the others.
    from: Option<Addr>,
    to_extent: Vec<Range<u64>>,
    from_extent: Vec<Range<u64>>,
}

/// Why a thread is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A function that changes is on its stack: where it goes on there.
    Inside(u64),
    /// Its stack cannot be walked to the end.
    Unknown(WalkError),
}

/// A thread that is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocked {
    /// Which.
    pub tid: Tid,
    /// Why.
    pub why: Why,
}

/// The transition under way.
#[derive(Debug)]
pub(crate) struct Transition {
    pub(crate) patch: PatchId,
    pub(crate) target: Target,
    pub(crate) moving: Vec<Moving>,
    /// Who was not over when everybody was looked at last.
    pub(crate) blocked: Vec<Blocked>,
}

/// Set when a thread has gone over by itself: who waits looks again.
static EVENT: AtomicU32 = AtomicU32::new(0);
/// Whether the thread that looks again and again is there.
static WORKING: AtomicBool = AtomicBool::new(false);

/// Where a frame must not be for its thread to be over, sorted.
type Ranges = Vec<Range<u64>>;

fn holds(ranges: &[Range<u64>], at: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= at);
    behind.checked_sub(1).is_some_and(|last| ranges[last].contains(&at))
}

/// A function, from which code, to which; `None` is the function itself.
type Move = (Addr, (Option<Addr>, Ranges), (Option<Addr>, Ranges));

/// Whom to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whom {
    /// Everybody, for the first time: their words are set.
    All,
    /// Those who are not over.
    Left,
    /// Nobody: whoever is not over is made to be.
    Nobody,
}

/// What was seen. Made before threads are held, and has room for all.
struct Seen {
    blocked: Vec<Blocked>,
    room: u64,
    is_small: bool,
    /// Whether nobody at all was in a stub.
    stubs_are_empty: bool,
    walker: Walker,
}

/// Looks at stacks while everybody is held: takes no memory.
fn look(held: &Held, whom: Whom, ranges: &Ranges, stubs: &Ranges, seen: &mut Seen) {
    seen.blocked.clear();
    seen.stubs_are_empty = whom == Whom::All;
    seen.is_small = held.count() + 1 > seen.room;
    if seen.is_small {
        return;
    }
    for stack in stacks(held) {
        if whom == Whom::Nobody {
            stack.word().store(0, Ordering::Relaxed);
        } else if whom == Whom::All || stack.word().load(Ordering::Relaxed) != 0 {
            let (why, in_stub) = inside(&stack, &mut seen.walker, ranges, stubs);
            seen.stubs_are_empty &= !in_stub;
            stack.word().store(u64::from(why.is_some()), Ordering::Relaxed);
            seen.blocked.extend(why.map(|why| Blocked { tid: stack.tid(), why }));
        }
    }
}

/// Whether a stack has one of the ranges on it, and whether it has a stub.
fn inside(stack: &Stack<'_>, walker: &mut Walker, ranges: &Ranges, stubs: &Ranges) -> (Option<Why>, bool) {
    let (mut found, mut in_stub) = (None, false);
    let walked = stack.walk_by(walker, |frame| {
        in_stub |= holds(stubs, frame.pc);
        let here = holds(ranges, frame.inside()) || holds(ranges, frame.pc) && frame.is_exact;
        if here && found.is_none() {
            found = Some(Why::Inside(frame.pc));
        }
        ControlFlow::Continue(())
    });
    match walked {
        Ok(Ended::Outermost) => (found, in_stub),
        // It is not ended early; who cannot be seen may be anywhere.
        Ok(Ended::Early) => (Some(Why::Unknown(WalkError::NowhereToBegin)), true),
        Err(error) => (found.or(Some(Why::Unknown(error))), true),
    }
}

impl Table {
    /// Begins a transition of functions of a patch that are patched and shall be, or shall not be any more. Says whether it is over
    /// already.
    pub(crate) fn begin(&mut self, patch: PatchId, target: Target) -> Result<bool, PatchError> {
        know_process()?;
        let moves = self.moves(patch, target);
        let forks = self.stubs.take(moves.len())?;
        let moving = moves.into_iter().zip(forks).map(|(moves, fork)| self.moving(moves, fork)).collect();
        self.transition = Some(Transition { patch, target, moving, blocked: Vec::new() });
        let over = self.attempt(Whom::All);
        if over.is_err()
            && let Some(transition) = self.transition.take()
        {
            self.stubs.retire(transition.moving.iter().map(|moving| moving.fork));
        }
        over
    }

    /// The functions whose newest code a transition changes: from what to what.
    fn moves(&self, patch: PatchId, target: Target) -> Vec<Move> {
        let moves = |(entry, function): (&Addr, &crate::table::Patched)| {
            let newest = function.stack.len().checked_sub(1)?;
            if function.stack[newest].patch != patch {
                return None;
            }
            let with = self.version(*entry, Some(newest));
            let without = self.version(*entry, newest.checked_sub(1));
            Some(match target {
                Target::Patched => (*entry, without, with),
                Target::Unpatched => (*entry, with, without),
            })
        };
        self.functions.iter().filter_map(moves).collect()
    }

    /// Looks at threads; completes the transition if all are over. Says whether it is.
    fn attempt(&mut self, whom: Whom) -> Result<bool, PatchError> {
        let Some(transition) = &self.transition else { return Ok(true) };
        let settled: Vec<Divert> =
            transition.moving.iter().map(|moving| Divert { entry: moving.entry, to: moving.to }).collect();
        let forked = transition.moving.iter();
        let forked = forked.map(|moving| Divert { entry: moving.entry, to: Some(moving.fork.stub()) }).collect();
        let ways = if whom == Whom::All { vec![settled, forked] } else { vec![settled] };
        let ranges = self.sight();
        let stubs = self.stubs.texts.clone();
        let list = |source| modload_threads::Error::List { source };
        let mut room = Tasks::open().and_then(|tasks| tasks.count()).map_err(list)? + 64;
        let (chosen, seen) = loop {
            let blocked = Vec::with_capacity(modload_edit::index(room));
            let mut seen = Seen { blocked, room, is_small: false, stubs_are_empty: false, walker: Walker::new() };
            let chosen = divert_chosen(&ways, |held| {
                look(held, whom, &ranges, &stubs, &mut seen);
                match (seen.is_small, seen.blocked.is_empty()) {
                    (true, _) => None,
                    (false, true) => Some(0),
                    (false, false) => (whom == Whom::All).then_some(1),
                }
            });
            let chosen = match chosen {
                Ok(chosen) => chosen,
                Err(error) => {
                    // Words mean nothing without stubs.
                    if whom == Whom::All {
                        clear_words()?;
                    }
                    return Err(error.into());
                }
            };
            if !seen.is_small {
                break (chosen, seen);
            }
            room *= 2;
        };
        if seen.stubs_are_empty {
            self.stubs.recover();
        }
        let over = chosen == Some(0);
        if let Some(transition) = &mut self.transition {
            transition.blocked = seen.blocked;
        }
        if over {
            SHOWN.clear();
        } else if whom == Whom::All {
            SHOWN.show(&ranges);
            work();
        }
        Ok(over)
    }

    /// Where no frame may be for a thread to be over.
    fn sight(&self) -> Ranges {
        let moving = self.transition.iter().flat_map(|transition| &transition.moving);
        let mut ranges: Ranges = moving.flat_map(|moving| moving.from_extent.iter().cloned()).collect();
        ranges.extend(self.stubs.texts.iter().cloned());
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// Functions of a module that is coming take part in the transition that is under way. Nobody is in them.
    pub(crate) fn join(&mut self, patch: PatchId) -> Result<(), PatchError> {
        let Some(target) = self.transition.as_ref().map(|transition| transition.target) else { return Ok(()) };
        let known: Vec<Addr> = self.transition.iter().flat_map(|one| &one.moving).map(|moving| moving.entry).collect();
        let moves: Vec<_> =
            self.moves(patch, target).into_iter().filter(|(entry, ..)| !known.contains(entry)).collect();
        let forks = self.stubs.take(moves.len())?;
        let moving: Vec<_> = moves.into_iter().zip(forks).map(|(moves, fork)| self.moving(moves, fork)).collect();
        if let Some(transition) = &mut self.transition {
            transition.moving.extend(moving);
        }
        SHOWN.show(&self.sight());
        Ok(())
    }

    /// Functions of a module that goes take no part any more.
    pub(crate) fn part(&mut self, entries: &[Addr]) {
        let Some(transition) = &mut self.transition else { return };
        let gone = transition.moving.extract_if(.., |moving| entries.contains(&moving.entry));
        let gone: Vec<_> = gone.map(|moving| moving.fork).collect();
        self.stubs.retire(gone.into_iter());
        SHOWN.show(&self.sight());
    }

    fn moving(&self, (entry, from, to): Move, fork: &'static Fork) -> Moving {
        let home = self.functions.get(&entry).map_or(entry, |function| function.home);
        let ((from, from_extent), (to, to_extent)) = (from, to);
        fork.leads(home, to.unwrap_or(home), from.unwrap_or(home));
        Moving { entry, fork, to, from, to_extent, from_extent }
    }

    /// Turns a transition round: who was over is not any more, and the others are.
    pub(crate) fn turn(&mut self) -> Result<(), PatchError> {
        let Some(transition) = &mut self.transition else { return Err(PatchError::NoTransition) };
        let held = hold(DEFAULT_LIMIT)?;
        for stack in stacks(&held) {
            let was = stack.word().load(Ordering::Relaxed);
            stack.word().store(u64::from(was == 0), Ordering::Relaxed);
        }
        transition.moving.iter().for_each(|moving| moving.fork.reverse());
        drop(held);
        transition.target = match transition.target {
            Target::Patched => Target::Unpatched,
            Target::Unpatched => Target::Patched,
        };
        for moving in &mut transition.moving {
            std::mem::swap(&mut moving.from_extent, &mut moving.to_extent);
            std::mem::swap(&mut moving.to, &mut moving.from);
        }
        let ranges = self.sight();
        SHOWN.show(&ranges);
        Ok(())
    }

    /// Looks again at who is not over; says whether all are.
    pub(crate) fn try_again(&mut self) -> Result<bool, PatchError> {
        self.attempt(Whom::Left)
    }

    /// Makes everybody be over, wherever they are.
    pub(crate) fn force(&mut self) -> Result<bool, PatchError> {
        self.attempt(Whom::Nobody)
    }

    /// In the child of a fork: the threads that were not over are not here, but for the one that has forked; nor is ours. It is
    /// started when somebody asks for the first time: most children run another program soon.
    pub(crate) fn forked(&mut self) {
        WORKING.store(false, Ordering::Relaxed);
    }

    /// Sees to it that the transition under way, if there is one, is looked at again.
    pub(crate) fn keep_working(&self) {
        if self.transition.is_some() {
            work();
        }
    }
}

/// Nobody is in any transition.
fn clear_words() -> Result<(), PatchError> {
    let held = hold(DEFAULT_LIMIT)?;
    stacks(&held).for_each(|stack| stack.word().store(0, Ordering::Relaxed));
    Ok(())
}

/// Has a thread look again and again, as long as a transition is under way.
fn work() {
    if WORKING.swap(true, Ordering::AcqRel) {
        return;
    }
    let begun = thread::Builder::new().name("modload-klp".into()).spawn(|| {
        const FIRST: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_secs(1);
        let mut pause = FIRST;
        loop {
            let before = EVENT.load(Ordering::Acquire);
            let timeout = futex::Timespec {
                tv_sec: pause.as_secs().try_into().unwrap_or(1),
                tv_nsec: pause.subsec_nanos().into(),
            };
            let _woken = futex::wait(&EVENT, futex::Flags::PRIVATE, before, Some(&timeout));
            let happened = EVENT.load(Ordering::Acquire) != before;
            pause = if happened { FIRST } else { (pause * 2).min(LONGEST) };
            let Ok(mut table) = table() else { continue };
            if table.transition.is_none() {
                WORKING.store(false, Ordering::Release);
                return;
            }
            if let Err(error) = table.go_on() {
                tracing::warn!(%error, "a transition cannot be completed yet");
            }
        }
    });
    if let Err(error) = begun {
        WORKING.store(false, Ordering::Release);
        tracing::error!(%error, "no thread can be had that looks whether a transition can be completed");
    }
}

/// A thread that is not over has come by a stub. Async-signal-safe.
pub(crate) fn came_by() {
    /// At most so many calls, as a power of two, until it is looked at again.
    const MOST: u64 = 16;
    let word = word::own();
    let tries = word.load(Ordering::Relaxed) & u64::from(u32::MAX);
    if tries == 0 {
        return;
    }
    // Of the frames of this code, and of the function that it is about to enter, nothing follows.
    let (_, event) = event_code();
    let mut ours = true;
    let mut entered = false;
    let seen = SHOWN.look(|frame| {
        let skipped = ours || entered;
        entered = ours && event.contains(&frame.inside());
        ours &= !entered;
        skipped
    });
    if seen == Some(false) {
        over();
    } else {
        let tries = (tries + 1).min(MOST);
        word.store(1_u64.checked_shl(u32::try_from(tries).unwrap_or(0)).unwrap_or(1) << 32 | tries, Ordering::Relaxed);
    }
}

/// This thread is over.
fn over() {
    word::own().store(0, Ordering::Relaxed);
    EVENT.fetch_add(1, Ordering::Release);
    let _woken = futex::wake(&EVENT, futex::Flags::PRIVATE, 1);
}

/// A place where a thread can be asked whether it is over; costs nothing when no transition is under way. Says whether it is.
pub fn checkpoint() -> bool {
    if word::own().load(Ordering::Relaxed) == 0 {
        return true;
    }
    let is_over = SHOWN.look(|_| false) == Some(false);
    if is_over {
        over();
    }
    is_over
}

/// The ranges for threads that look at their own stacks, wherever they are: read without a lock.
struct Shown {
    /// Odd while it is being written.
    version: AtomicU32,
    len: AtomicUsize,
    ends: [[AtomicU64; 2]; MOST_SHOWN],
}

/// How many there are at most; of a transition of more, threads are looked at by others alone.
const MOST_SHOWN: usize = 4096;

static SHOWN: Shown = Shown {
    version: AtomicU32::new(0),
    len: AtomicUsize::new(0),
    ends: [const { [const { AtomicU64::new(0) }; 2] }; MOST_SHOWN],
};

impl Shown {
    /// Who writes has the table.
    fn show(&self, ranges: &Ranges) {
        self.version.fetch_add(1, Ordering::AcqRel);
        for (ends, range) in self.ends.iter().zip(ranges) {
            ends[0].store(range.start, Ordering::Relaxed);
            ends[1].store(range.end, Ordering::Relaxed);
        }
        self.len.store(ranges.len(), Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    fn clear(&self) {
        self.show(&Vec::new());
    }

    /// Whether this thread's stack has one of them on it, frames aside that are skipped. `None` if that cannot be said.
    fn look(&self, mut skip: impl FnMut(&Frame) -> bool) -> Option<bool> {
        let version = self.version.load(Ordering::Acquire);
        let ranges = self.ends.get(..self.len.load(Ordering::Relaxed))?;
        if !version.is_multiple_of(2) || ranges.is_empty() {
            return None;
        }
        let holds = |at: u64| {
            let behind = ranges.partition_point(|[start, _]| start.load(Ordering::Relaxed) <= at);
            behind.checked_sub(1).is_some_and(|last| at < ranges[last][1].load(Ordering::Relaxed))
        };
        let mut found = false;
        let walked = walk_here(|frame| {
            found |= !skip(frame) && (holds(frame.inside()) || frame.is_exact && holds(frame.pc));
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let same = self.version.load(Ordering::Acquire) == version;
        (walked.is_ok() && same).then_some(found)
    }
}
