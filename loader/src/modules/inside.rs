//! Who is inside of a module: the proof that its text may go.
//!
//! Every other thread is held, or looked at where it sleeps, and each stack is walked, this thread's too. A frame that goes on in
//! the text is inside; a stack that cannot be walked to its end may have one, and counts like one. With no other thread in the
//! process no signal is sent. docs/threads.md has the argument.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::thread;
use std::time::{Duration, Instant};

use modload_edit::Addr;
use modload_threads::creation;
use modload_threads::frames::{self, Ended, Frame, NoFinder, Stack, Starts, StartsUnknown, WalkError, Walker, Words};
use modload_threads::{Sleeper, Tid, is_alone, name};
use thiserror::Error;

use crate::modules::module::Module;
use crate::prepare::policy::Proof;
use crate::vocabulary::occupant::{Occupant, Occupies};
use crate::vocabulary::sentence::sentence;
use modload_threads::thread_exit;

/// Threads cannot be looked at.
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

/// Whose frames do not matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Except {
    /// Nobody's.
    Nobody,
    /// Those of threads that the module itself has started: below its oldest frame there is nothing but what starts a
    /// thread. Its `exit` ends them.
    ItsOwn,
}

/// Frames below a module's oldest one that are kept: what starts a thread needs two.
const OUTER: usize = 8;

/// What one walk has found. Made while threads are held, so it has a fixed size.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    tid: Tid,
    /// The innermost frame inside.
    inside: Option<Frame>,
    /// What goes on below the outermost frame inside.
    outer: [u64; OUTER],
    outer_count: usize,
    ended: Result<Ended, WalkError>,
    /// Which module has created the thread, if that is known; 0 if none has.
    creator: u64,
    /// Where the thread sleeps, if it was not held, and what its words have shown.
    asleep: Option<(Sleeper, Option<u64>)>,
}

/// Ranges of code in order, of which none touches another: there may be thousands, and each frame is looked for in them.
struct Places(Vec<Range<u64>>);

impl Places {
    fn of(code: impl IntoIterator<Item = Range<u64>>) -> Places {
        let mut ranges: Vec<_> = code.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            range.end = if touches { range.end.max(next.end) } else { range.end };
            touches
        });
        Places(ranges)
    }

    fn hold(&self, at: u64) -> bool {
        let behind = self.0.partition_point(|range| range.start <= at);
        behind.checked_sub(1).is_some_and(|last| at < self.0[last].end)
    }

    /// Whether nothing on this thread's stack is a return into them.
    fn are_left(&self, returned_to: impl Fn(u64) -> bool) -> bool {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return true };
        frames::may_return(&(first.start..last.end), |at| self.hold(at) && returned_to(at)) == Some(false)
    }
}

/// What a look at all threads has found.
struct Look {
    /// Who is inside, or may be. Whoever is not among them is not.
    inside: Vec<Sighting>,
    /// Threads that have not begun their first function, or have returned from it.
    between: Vec<Tid>,
}

impl Look {
    /// Looks at all threads.
    fn at_all(code: &Places, starts: &Starts) -> Result<Look, modload_threads::Error> {
        // What is met on one stack serves the others: threads that sleep mostly do so in the same place.
        let room = |stacks| (Look::with_room(stacks), Walker::new());
        let seen = frames::each_stack(room, |(look, walker), stack| look.sight(stack, walker, code, starts));
        seen.map(|(look, _)| look)
    }

    fn with_room(stacks: usize) -> Look {
        Look { inside: Vec::with_capacity(stacks), between: Vec::with_capacity(stacks) }
    }

    /// Walks one stack, and keeps what there is to keep of it. Takes no memory: there is room for every thread.
    fn sight(&mut self, stack: &Stack<'_>, walker: &mut Walker, code: &Places, starts: &Starts) {
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
                    // What a signal has interrupted is no start of a thread: no return address is 0.
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
                Words::Free { has_begun: true } => {
                    is_left = true;
                    has_begun = true;
                }
                // Not even where it began is on this stack: it may have another.
                Words::Free { has_begun: false } | Words::Unknown => {}
                Words::Hold(found) => *word = Some(found),
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
    /// Whether it is a thread that the module has created. Of a thread that was created in a way that tells nothing of its creator:
    /// whether it is code in the module's text that it began with.
    fn is_its_own(&self, module: &Module, starts: &Starts) -> bool {
        if self.creator != 0 {
            return self.creator == module.creator.number();
        }
        let Some(outer) = self.outer.get(..self.outer_count) else { return false };
        let is_start = |pc: &u64| starts.all().binary_search(pc).is_ok();
        self.inside.is_some() && self.ended == Ok(Ended::Outermost) && !outer.is_empty() && outer.iter().all(is_start)
    }
}

/// Why it cannot be seen whether threads are in a module's code, whatever they are doing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CannotLook {
    /// The process's own functions cannot be found.
    #[error("stacks cannot be walked")]
    Walk(#[from] NoFinder),
    /// It is not known how threads begin.
    #[error("threads that have not begun yet cannot be told from others")]
    Starts(#[from] StartsUnknown),
}

/// Finds out, before any thread is held, what a look needs.
///
/// # Errors
/// [`CannotLook`]. No failure is remembered.
pub fn can_look() -> Result<&'static Starts, CannotLook> {
    frames::know_process()?;
    Ok(frames::thread_starts()?)
}

/// Whom a proof has found in spite of it: whose frames do not matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// Nobody at all.
    Nobody,
    /// Threads of the module's own; or it was not looked.
    ItsOwn,
}

/// Whether those of whom nothing is known yet are looked at again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// For a moment.
    Some,
    /// No: somebody looks again another time.
    Once,
}

/// How long threads are waited for that have not begun yet, or not ended, and how often they are looked at.
const SETTLING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// How long threads are looked at again whose stacks cannot be walked.
const PASSING: Duration = Duration::from_millis(100);

/// Proves that no thread is inside of a module, or of what stands in for its functions.
///
/// A thread that the module has created and that has not begun has no frame in it yet. So for a module that nobody may
/// be in any more, those that were seen between beginning and end are waited for. Who is created later is not the
/// module's: nobody was in it.
pub(crate) fn prove_empty(module: &Module, except: Except, patience: Patience) -> Result<Seen, Occupied> {
    let (own, destructors): (Vec<_>, Vec<_>) =
        thread_exit::open(module.creator.number()).into_iter().partition(|(tid, _)| *tid == Tid::current());
    // This thread calls its own before anything is freed.
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
    let code = Places::of(module.text().into_iter().chain(stand_ins));
    if code.0.is_empty() {
        return Ok(if calls_own { Seen::ItsOwn } else { Seen::Nobody });
    }
    if module.proof == Proof::Promise {
        return Ok(Seen::ItsOwn);
    }
    frames::know_process().map_err(|source| Occupied::NotHeld(sentence(&CannotLook::from(source))))?;
    // The usual case of a small program: nobody else is there, and nothing on this stack can be a return into the module.
    let returned_to = |at| !module.holds_code(Addr::new(at)) || module.may_be_returned_to(Addr::new(at));
    if is_alone().unwrap_or(false) && module.creator.unborn() == 0 && code.are_left(returned_to) {
        return Ok(if calls_own { Seen::ItsOwn } else { Seen::Nobody });
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
            // Who runs through code without rows, an entry of a PLT say, has left it in a moment.
            let unknown = |occupant: &Occupant| matches!(occupant.why, Occupies::Unknown(_) | Occupies::Asleep { .. });
            let known = !occupants.iter().all(unknown);
            if known || patience == Patience::Once || begun.elapsed() > PASSING {
                return Err(Occupied::By(occupants));
            }
            thread::sleep(LOOK);
            continue;
        }
        let unborn = module.creator.unborn();
        if except == Except::ItsOwn {
            let nobody = inside.is_empty() && between.is_empty() && unborn == 0 && !calls_own;
            return Ok(if nobody { Seen::Nobody } else { Seen::ItsOwn });
        }
        let still = |tid: &Tid| unsettled.as_ref().is_none_or(|before| before.contains(tid));
        let left: Vec<_> = between.into_iter().filter(still).collect();
        if left.is_empty() && unborn == 0 {
            return Ok(Seen::Nobody);
        }
        if patience == Patience::Once || begun.elapsed() > SETTLING {
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
    /// The threads that are inside of some of its code, or may be.
    ///
    /// # Errors
    /// Threads cannot be held.
    pub fn occupants(&self, code: &[Range<u64>]) -> Result<Vec<Occupant>, LookError> {
        occupants(self, code)
    }
}

/// Who is inside of some code, or may be: `module` is whose it is.
fn occupants(module: &Module, code: &[Range<u64>]) -> Result<Vec<Occupant>, LookError> {
    let code = Places::of(code.iter().cloned());
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
        // What stands in for a module's function is another's.
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
