//! Proves that no thread is in a module's text, so that the text may be freed.
//!
//! Every other thread is held, or examined while asleep, and every stack is walked, including that of this thread. A
//! thread is inside if a frame will continue in the text. A stack that cannot be walked to the end may contain such a
//! frame, and counts as inside. A process with a single thread sends no signal. docs/threads.md has the argument.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::thread;
use std::time::{Duration, Instant};

use modload_edit::Addr;
use modload_threads::creation;
use modload_threads::frames::{
    self, Ended, Frame, NoFinder, Stack, StackWords, Starts, StartsUnknown, WalkError, Walker,
};
use modload_threads::{Sleeper, Tid, is_alone, name};
use thiserror::Error;

use crate::modules::module::Module;
use crate::prepare::policy::Proof;
use crate::vocabulary::occupant::{Occupant, Occupies};
use crate::vocabulary::sentence::sentence;
use modload_threads::thread_exit;

/// Threads cannot be examined.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LookError {
    /// None can.
    #[error(transparent)]
    Cannot(#[from] CannotLook),
    /// Some could not be held at this time.
    #[error(transparent)]
    Threads(#[from] modload_threads::Error),
}

/// Why a module's text must stay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Occupied {
    /// Threads are inside, or may be.
    By(Vec<Occupant>),
    /// Threads could not be held.
    NotHeld(String),
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Occupied::By(threads) => {
                f.write_str("its code is not left: ")?;
                for (at, thread) in threads.iter().enumerate() {
                    let separator = if at == 0 { "" } else { "; " };
                    write!(f, "{separator}{thread}")?;
                }
                Ok(())
            }
            Occupied::NotHeld(why) => write!(f, "whether its code is left cannot be seen: {why}"),
        }
    }
}

/// The frames that do not matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Except {
    /// Nobody's.
    Nobody,
    /// Frames of threads that the module itself has started: below the module's oldest frame, such a stack has only
    /// frames that start a thread. The module's `exit` ends those threads.
    ItsOwn,
}

/// Number of kept frames below a module's oldest frame; starting a thread uses two.
const OUTER: usize = 8;

/// The result of one walk. Has a fixed size, because a walk runs while threads are held.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    tid: Tid,
    /// The innermost frame inside.
    inside: Option<Frame>,
    /// The frames below the outermost frame in the module.
    outer: [u64; OUTER],
    outer_count: usize,
    ended: Result<Ended, WalkError>,
    /// Which module has created the thread, if that is known; 0 if none has.
    creator: u64,
    /// Where the thread sleeps, if the thread was not held, and the address that was found among the words of the
    /// stack.
    asleep: Option<(Sleeper, Option<u64>)>,
}

/// Sorted ranges of code that do not touch each other. There may be thousands, and every frame is searched in these
/// ranges.
struct CodeRanges(Vec<Range<u64>>);

impl CodeRanges {
    fn of(code: impl IntoIterator<Item = Range<u64>>) -> CodeRanges {
        let mut ranges: Vec<_> = code.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            range.end = if touches { range.end.max(next.end) } else { range.end };
            touches
        });
        CodeRanges(ranges)
    }

    fn hold(&self, at: u64) -> bool {
        let behind = self.0.partition_point(|range| range.start <= at);
        behind.checked_sub(1).is_some_and(|last| at < self.0[last].end)
    }

    /// Whether nothing on this thread's stack is a return into these ranges.
    fn are_left(&self, returned_to: impl Fn(u64) -> bool) -> bool {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return true };
        frames::may_return(&(first.start..last.end), |at| self.hold(at) && returned_to(at)) == Some(false)
    }
}

/// The result of a look at all threads.
struct Look {
    /// Threads that are inside, or may be. Every other thread is not inside.
    inside: Vec<Sighting>,
    /// Threads that have not begun their first function, or have already returned from that function.
    between: Vec<Tid>,
}

impl Look {
    /// Looks at all threads.
    fn at_all(code: &CodeRanges, starts: &Starts) -> Result<Look, modload_threads::Error> {
        // Sleeping threads mostly sleep in the same place, so the walker reuses the rows that other stacks have needed.
        let room = |stacks| (Look::with_room(stacks), Walker::new());
        let seen = frames::each_stack(room, |(look, walker), stack| look.sight(stack, walker, code, starts));
        seen.map(|(look, _)| look)
    }

    fn with_room(stacks: usize) -> Look {
        Look { inside: Vec::with_capacity(stacks), between: Vec::with_capacity(stacks) }
    }

    /// Walks one stack and keeps the result. Allocates no memory: there is room for every thread.
    fn sight(&mut self, stack: &Stack<'_>, walker: &mut Walker, code: &CodeRanges, starts: &Starts) {
        let tid = stack.tid();
        let mut sighting = Sighting {
            tid,
            inside: None,
            outer: [0; OUTER],
            outer_count: 0,
            ended: Ok(Ended::Early),
            creator: stack.creator().unwrap_or_default(),
            asleep: stack.sleeper().map(|sleeper| (*sleeper, None)),
        };
        let (mut has_begun, mut is_beginning) = (tid.is_first(), false);
        let mut outermost = 0;
        sighting.ended = stack.walk_by(walker, |frame| {
            outermost = frame.pc;
            is_beginning |= creation::is_beginning(frame.pc);
            has_begun |= starts.first().binary_search(&frame.pc).is_ok();
            if code.hold(frame.inside()) || code.hold(frame.pc) {
                sighting.inside = sighting.inside.or(Some(*frame));
                sighting.outer_count = 0;
            } else if sighting.inside.is_some() {
                if let Some(place) = sighting.outer.get_mut(sighting.outer_count) {
                    // A frame that a signal has interrupted is not the start of a thread. No return address is 0.
                    *place = if frame.is_exact || frame.is_signal { 0 } else { frame.pc };
                }
                sighting.outer_count += 1;
            }
            ControlFlow::Continue(())
        });
        let mut is_left = sighting.inside.is_none() && sighting.ended == Ok(Ended::Outermost);
        if let Some((sleeper, word)) = &mut sighting.asleep
            && !is_left
            && sighting.inside.is_none()
        {
            match frames::words(sleeper, |at| code.hold(at)) {
                StackWords::Free { has_begun: true } => {
                    is_left = true;
                    has_begun = true;
                }
                // The start of the thread is not on this stack either: the thread may use another stack.
                StackWords::Free { has_begun: false } | StackWords::Unknown => {}
                StackWords::Hold(found) => *word = Some(found),
            }
        }
        if !is_left {
            self.inside.push(sighting);
        } else if is_beginning || !has_begun && starts.all().binary_search(&outermost).is_ok() {
            self.between.push(tid);
        }
    }
}

impl Sighting {
    /// Whether the module has created this thread. If the creator is unknown: whether the thread's first function is in
    /// the module's text.
    fn is_its_own(&self, module: &Module, starts: &Starts) -> bool {
        if self.creator != 0 {
            return self.creator == module.creator.number();
        }
        let Some(outer) = self.outer.get(..self.outer_count) else { return false };
        let is_start = |pc: &u64| starts.all().binary_search(pc).is_ok();
        self.inside.is_some() && self.ended == Ok(Ended::Outermost) && !outer.is_empty() && outer.iter().all(is_start)
    }
}

/// Reasons why threads in a module's code cannot be detected at all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CannotLook {
    /// The process's own functions cannot be found.
    #[error("stacks cannot be walked")]
    Walk(#[from] NoFinder),
    /// The functions that start threads are not known.
    #[error("threads that have not begun yet cannot be told from others")]
    Starts(#[from] StartsUnknown),
}

/// Prepares for a look at all threads, before any thread is held.
///
/// # Errors
/// [`CannotLook`]. Failures are not cached.
pub fn can_look() -> Result<&'static Starts, CannotLook> {
    frames::know_process()?;
    Ok(frames::thread_starts()?)
}

/// The threads that a successful proof has found inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SeenInside {
    /// None.
    Nobody,
    /// Threads of the module's own; also if no look was made.
    ItsOwn,
}

/// Whether threads in an unknown state are examined again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LookPatience {
    /// For a moment.
    Some,
    /// No: a later sweep examines them.
    Once,
}

/// How long threads that have not begun, or not ended, are waited for, and how often they are examined.
const SETTLING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// Time limit for examining threads again whose stacks cannot be walked.
const PASSING: Duration = Duration::from_millis(100);

/// Proves that no thread is inside of a module, or inside of code that replaces the module's functions.
///
/// A thread that the module has created and that has not begun has no frame in the module yet. For a module that must
/// be empty, threads between creation and first function, or between return and end, are therefore waited for. Threads
/// created later cannot belong to the module, because no thread was inside.
pub(crate) fn prove_empty(module: &Module, except: Except, patience: LookPatience) -> Result<SeenInside, Occupied> {
    let (own, destructors): (Vec<_>, Vec<_>) =
        thread_exit::open(module.creator.number()).into_iter().partition(|(tid, _)| *tid == Tid::current());
    // This thread runs the destructors of its own thread-local variables before anything is freed.
    let calls_own = except == Except::ItsOwn && !own.is_empty();
    let destructors = if except == Except::ItsOwn { destructors } else { [own, destructors].concat() };
    if !destructors.is_empty() {
        let owe = |(tid, count): (Tid, usize)| Occupant {
            thread: tid.get(),
            name: name_of(tid),
            why: Occupies::Destructors(count),
        };
        return Err(Occupied::By(destructors.into_iter().map(owe).collect()));
    }
    let stand_ins = module.stand_ins();
    let code = CodeRanges::of(module.text().into_iter().chain(stand_ins));
    if code.0.is_empty() {
        return Ok(if calls_own { SeenInside::ItsOwn } else { SeenInside::Nobody });
    }
    if module.proof == Proof::Promise {
        return Ok(SeenInside::ItsOwn);
    }
    frames::know_process().map_err(|source| Occupied::NotHeld(sentence(&CannotLook::from(source))))?;
    // The usual case of a small program: no other thread exists, and nothing on this stack can be a return into the
    // module.
    let returned_to = |at| !module.holds_code(Addr::new(at)) || module.may_be_returned_to(Addr::new(at));
    if is_alone().unwrap_or(false) && module.creator.unborn() == 0 && code.are_left(returned_to) {
        return Ok(if calls_own { SeenInside::ItsOwn } else { SeenInside::Nobody });
    }
    let starts = can_look().map_err(|error| Occupied::NotHeld(sentence(&error)))?;
    let begun = Instant::now();
    let mut unsettled: Option<Vec<Tid>> = None;
    loop {
        let Look { inside, between } =
            Look::at_all(&code, starts).map_err(|error| Occupied::NotHeld(error.to_string()))?;
        let matters = |sighting: &&Sighting| except == Except::Nobody || !sighting.is_its_own(module, starts);
        let mut occupants: Vec<_> = inside.iter().filter(matters).map(|sighting| occupant(sighting, module)).collect();
        if !occupants.is_empty() {
            // A thread in code without rows, for example in a PLT entry, leaves that code within a moment.
            let unknown = |occupant: &Occupant| matches!(occupant.why, Occupies::Unknown(_) | Occupies::Asleep { .. });
            let known = !occupants.iter().all(unknown);
            if known || patience == LookPatience::Once || begun.elapsed() > PASSING {
                return Err(Occupied::By(occupants));
            }
            thread::sleep(LOOK);
            continue;
        }
        let unborn = module.creator.unborn();
        if except == Except::ItsOwn {
            let nobody = inside.is_empty() && between.is_empty() && unborn == 0 && !calls_own;
            return Ok(if nobody { SeenInside::Nobody } else { SeenInside::ItsOwn });
        }
        let still = |tid: &Tid| unsettled.as_ref().is_none_or(|before| before.contains(tid));
        let left: Vec<_> = between.into_iter().filter(still).collect();
        if left.is_empty() && unborn == 0 {
            return Ok(SeenInside::Nobody);
        }
        if patience == LookPatience::Once || begun.elapsed() > SETTLING {
            let between = |tid: &Tid| Occupant { thread: tid.get(), name: name_of(*tid), why: Occupies::Between };
            occupants.extend(left.iter().map(between));
            if left.is_empty() {
                occupants.push(Occupant { thread: 0, name: String::new(), why: Occupies::Unborn(unborn) });
            }
            return Err(Occupied::By(occupants));
        }
        unsettled = Some(left);
        thread::sleep(LOOK);
    }
}

impl Module {
    /// Returns the threads that are inside of some of the module's code, or may be.
    ///
    /// # Errors
    /// Threads cannot be held.
    pub fn occupants(&self, code: &[Range<u64>]) -> Result<Vec<Occupant>, LookError> {
        occupants(self, code)
    }
}

/// Returns the threads that are inside of some code, or may be. `module` is the owner of the code.
fn occupants(module: &Module, code: &[Range<u64>]) -> Result<Vec<Occupant>, LookError> {
    let code = CodeRanges::of(code.iter().cloned());
    if is_alone().unwrap_or(false) && code.are_left(|_| true) {
        return Ok(Vec::new());
    }
    let Look { inside, .. } = Look::at_all(&code, can_look()?)?;
    Ok(inside.iter().map(|sighting| occupant(sighting, module)).collect())
}

fn name_of(tid: Tid) -> String {
    name(tid).ok().flatten().map(|name| name.to_string()).unwrap_or_default()
}

fn occupant(sighting: &Sighting, module: &Module) -> Occupant {
    let describe = |frame: &Frame| {
        let at = Addr::new(frame.pc);
        // Code that replaces a module's function belongs to another module.
        let other = || module.registry.lock().module_at(at);
        let of = if module.contains(at) { None } else { other() };
        let of = of.as_deref().unwrap_or(module);
        let described = if frame.is_exact { of.describe(at) } else { of.describe_return(at) };
        described.unwrap_or_else(|| format!("{at} [{}]", module.name()))
    };
    // Walks are never ended early here.
    let error = sighting.ended.err().unwrap_or(WalkError::NowhereToBegin);
    let why = match (&sighting.inside, sighting.asleep) {
        (Some(frame), _) => Occupies::Inside(describe(frame)),
        (None, Some((sleeper, word))) => {
            let word = word.map(|pc| describe(&Frame { pc, cfa: 0, is_exact: true, is_signal: false }));
            Occupies::Asleep { call: sleeper.call(), error, word }
        }
        (None, None) => Occupies::Unknown(error),
    };
    Occupant { thread: sighting.tid.get(), name: name_of(sighting.tid), why }
}
