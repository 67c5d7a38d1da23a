//! Every other thread stands still.

use std::io;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Straggler, Stragglers, Why};
use crate::handler::Interrupted;
use crate::round::{self, Asked, Round, Sleepers};
use crate::signal;
use crate::sleeper::{self, Sight, Sleeper};
use crate::slot;
use crate::task::{self, Tasks, Tid};
use crate::turn::Turn;
use crate::word::Words;

/// How long the first attempt waits before it lets everybody go again; each one after it waits twice as long. Where the
/// last hold took longer, because there are more busy threads than processors, the next begins with what that took.
const FIRST_PATIENCE: Duration = Duration::from_millis(4);
/// No attempt but the last waits longer: more attempts find fewer threads that are just starting or ending.
const LONGEST_PATIENCE: Duration = Duration::from_millis(64);

/// What the attempt that succeeded last took, in microseconds.
static LAST: AtomicU64 = AtomicU64::new(0);

fn first_patience() -> Duration {
    let last = Duration::from_micros(LAST.load(Ordering::Relaxed));
    (last * 2).clamp(FIRST_PATIENCE, LONGEST_PATIENCE)
}

/// How often a thread that blocks our signal is looked at, while nobody is held.
const LOOK: Duration = Duration::from_micros(500);

/// Every other thread of the process stands in our signal's handler until this is dropped.
///
/// The thread that has it must not need anything that a held thread may own. It must not take memory or give it back,
/// lock, print, log, panic, start or join a thread, change credentials (`setuid` asks every thread), or fork.
/// What it may do: system calls, and reading and writing memory that is its own to read and write.
///
/// When it is dropped, cores are serialised before any thread goes on: all at once by membarrier(2), if the process is registered for
/// `PRIVATE_EXPEDITED_SYNC_CORE`; else by CPUID in each thread.
#[derive(Debug)]
#[must_use = "everybody goes on when it is dropped"]
pub struct Held {
    /// Dropped before the turn ends.
    round: Round,
    _turn: Turn,
}

/// Holds every other thread of the process.
///
/// A thread that blocks the signal may do so only for a moment, and may in that moment wait for what a held thread
/// owns. So after some milliseconds everybody is let go, waited for who blocked the signal, and all are asked again,
/// with twice the patience up to a bound, until `limit` has passed.
///
/// With no other thread in the process, no signal is sent. What the signal does to threads: see
/// [`counts`](crate::counts).
///
/// # Errors
///
/// [`Error::NotReached`] names who did not come, and why. [`Error::Busy`] if another thread holds or asks for all of
/// `limit`, [`Error::Nested`] if this one does. [`Error::Replaced`] if somebody has taken our signal. Nobody is held
/// then.
pub fn hold(limit: Duration) -> Result<Held, Error> {
    stop(limit, Sleepers::Asked)
}

/// [`hold`], where a thread that blocks the signal, waits for it, or sleeps uninterruptibly, is not held but looked at where it sleeps in
/// the kernel: [`Held::sleepers`]. Whatever is found out of such a thread holds if [`Held::awake`] names none afterwards.
///
/// # Errors
///
/// As [`hold`]: such a thread that runs all the time is named.
pub fn hold_or_look(limit: Duration) -> Result<Held, Error> {
    stop(limit, Sleepers::LookedAt)
}

fn stop(limit: Duration, sleepers: Sleepers) -> Result<Held, Error> {
    let begin = Instant::now();
    let turn = Turn::take(Some(limit))?;
    let signal = signal::ready()?;
    let list = |source| Error::List { source };
    let tasks = Tasks::open().map_err(list)?;
    let mut patience = first_patience();
    loop {
        // Threads that start meanwhile need some, too; and where that is not enough, the attempt says so.
        let count = tasks.count().map_err(list)?;
        slot::reserve(count + count / 4 + 16 + round::debts());
        let left = limit.saturating_sub(begin.elapsed());
        let mut round = Round::begin(signal, sleepers);
        // The last attempt takes what is left, so that none is too short to mean anything.
        let wait = if left < patience * 2 { left } else { patience };
        let attempt = Instant::now();
        let failure = match everybody(&tasks, &mut round, attempt + wait) {
            Ok(()) => {
                let took = u64::try_from(attempt.elapsed().as_micros()).unwrap_or(u64::MAX);
                LAST.store(took, Ordering::Relaxed);
                return Ok(Held { round, _turn: turn });
            }
            Err(failure) => failure,
        };
        drop(round);
        let over = begin.elapsed() >= limit;
        match failure {
            Failure::Error(error) => return Err(error),
            Failure::Crowded => slot::reserve(u64::from(slot::capacity()) + 1),
            Failure::Late(stragglers) if over => {
                return Err(Error::NotReached { stragglers: Box::new(stragglers), limit });
            }
            Failure::Restless { known, counted } if over => return Err(Error::Restless { known, counted, limit }),
            Failure::Late(stragglers) => {
                patience = (patience * 2).min(LONGEST_PATIENCE);
                if let Some(stragglers) = wait_for(&stragglers, signal, sleepers, deadline(begin, limit)) {
                    return Err(Error::NotReached { stragglers: Box::new(stragglers), limit });
                }
            }
            Failure::Restless { .. } => patience = (patience * 2).min(LONGEST_PATIENCE),
        }
    }
}

/// When a wait of at most `limit` is over.
pub(crate) fn deadline(begin: Instant, limit: Duration) -> Instant {
    // Far enough, for who says forever.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    begin.checked_add(limit).unwrap_or(begin + YEAR)
}

/// What an attempt ended with. Made while others are held, so without taking memory.
#[expect(clippy::large_enum_variant, reason = "a box would take memory while others are held")]
enum Failure {
    Error(Error),
    Crowded,
    Late(Stragglers),
    Restless { known: u64, counted: u64 },
}

/// Asks until everybody stands still.
///
/// That it is everybody is a matter of counting. The list may lack some (see [`Tasks::each`]), but not the count: who
/// is held neither starts threads nor ends, so if the kernel counts as many threads as are held or known never to run
/// again, and ourselves, then there is nobody else. Those that never run again may vanish; one that was seen before
/// counting and is still there afterwards was counted.
#[expect(clippy::result_large_err, reason = "a box would take memory while others are held")]
fn everybody(tasks: &Tasks, round: &mut Round, until: Instant) -> Result<(), Failure> {
    let list = |source| Failure::Error(Error::List { source });
    let me = Tid::current();
    if tasks.count().map_err(list)? == 1 {
        return Ok(());
    }
    loop {
        let asked = tasks.each(|tid| {
            if tid == me || round.knows(tid) {
                return ControlFlow::Continue(());
            }
            match round.ask(tid, ptr::null_mut()) {
                Ok(Asked::Well | Asked::Unasked) => ControlFlow::Continue(()),
                Ok(Asked::Crowded) => ControlFlow::Break(Failure::Crowded),
                Ok(Asked::QueueFull) => ControlFlow::Break(Failure::Late(queue_full(tid))),
                Err(source) => ControlFlow::Break(Failure::Error(Error::List { source })),
            }
        });
        if let ControlFlow::Break(failure) = asked.map_err(list)? {
            return Err(failure);
        }
        if !round.wait(until).map_err(list)?
            && let Some(stragglers) = round.stragglers()
        {
            return Err(Failure::Late(stragglers));
        }
        // Before counting: a thread that runs may create others.
        let asleep = round.refresh().map_err(list)?;
        let counted = tasks.count().map_err(list)?;
        let known = 1 + round.here() + round.asleep() + round.still_absent();
        if asleep && known == counted && round.wait(until).map_err(list)? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Failure::Restless { known, counted });
        }
    }
}

pub(crate) fn queue_full(tid: Tid) -> Stragglers {
    let mut stragglers = Stragglers::new();
    stragglers.push(Straggler { tid, name: task::name(tid).ok().flatten(), why: Why::QueueFull });
    stragglers
}

/// Waits until none of the threads that blocked the signal blocks it any more or, where a look at a sleeping thread will do, until those
/// that block it sleep. No thread is held meanwhile. Returns the threads that are in the way at the deadline.
fn wait_for(stragglers: &Stragglers, signal: i32, sleepers: Sleepers, deadline: Instant) -> Option<Stragglers> {
    let sleeps = |tid| sleepers == Sleepers::LookedAt && matches!(sleeper::look(tid), Ok(Sight::Asleep(_)));
    loop {
        thread::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now())));
        let mut blocking = Stragglers::new();
        let again = stragglers.iter().filter_map(|straggler| round::straggler(straggler.tid, signal));
        again
            .filter(|straggler| matches!(straggler.why, Why::Blocks { .. } | Why::Waits { .. }))
            .filter(|straggler| !sleeps(straggler.tid))
            .for_each(|one| blocking.push(one));
        if blocking.count() == 0 {
            return None;
        }
        if Instant::now() >= deadline {
            return Some(blocking);
        }
    }
}

impl Held {
    /// The held threads, in the order in which they were asked. Takes no memory.
    pub fn threads(&self) -> impl Iterator<Item = Interrupted<'_>> {
        self.round.come().filter_map(|slot| {
            let context = slot.context.load(Ordering::Relaxed);
            // SAFETY: the thread stored the address of its own signal frame before it became Here, and stands in its
            // handler, with that frame below it, while we live. We change frames only through `&mut self`.
            let context = unsafe { context.as_ref() };
            context.map(|context| Interrupted::new(Tid::new(slot.tid()), context))
        })
    }

    /// The held threads' words, in the order of [`Held::threads`]. Takes no memory.
    pub fn words(&self) -> impl Iterator<Item = (Tid, &AtomicU64)> {
        self.own_words().map(|(tid, words)| (tid, &words.word))
    }

    /// What each of the held threads has of its own, in the order of [`Held::threads`].
    pub(crate) fn own_words(&self) -> impl Iterator<Item = (Tid, &Words)> {
        self.round.come().filter_map(|slot| {
            let words = slot.words.load(Ordering::Relaxed);
            // SAFETY: the thread stored the address before it became Here, and stands in its handler while we live.
            let words = unsafe { words.as_ref() };
            words.map(|words| (Tid::new(slot.tid()), words))
        })
    }

    /// The threads that are not held but were looked at where they sleep, for [`hold_or_look`]. Takes no memory.
    pub fn sleepers(&self) -> impl Iterator<Item = Sleeper> {
        self.round.sleepers()
    }

    /// One of the [sleepers](Held::sleepers) that has run since it was looked at. If there is none, there was a moment in which all
    /// that was found of all threads was so.
    ///
    /// # Errors
    ///
    /// What open(2) or read(2) says of the files in `/proc`.
    pub fn awake(&self) -> io::Result<Option<Tid>> {
        for sleeper in self.sleepers() {
            if !sleeper.has_slept()? {
                return Ok(Some(sleeper.tid()));
            }
        }
        Ok(None)
    }

    /// How many threads were looked at where they sleep.
    pub(crate) fn asleep(&self) -> u64 {
        self.round.asleep()
    }

    /// How many threads are held.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.round.here()
    }

    /// Changes where a held thread goes on; `false` if no such thread is held.
    ///
    /// # Safety
    ///
    /// With all its registers, its stack and everything that others know of it, the thread can go on at `rip`: the
    /// instructions there do what those at the old place were to do.
    pub unsafe fn set_rip(&mut self, tid: Tid, rip: u64) -> bool {
        let Some(slot) = self.round.come().find(|slot| slot.tid() == tid.get()) else { return false };
        let context = slot.context.load(Ordering::Relaxed);
        // SAFETY: as in `threads`; nobody has borrowed from us meanwhile, and the thread looks at its frame only when
        // it has been let go.
        let Some(context) = (unsafe { context.as_mut() }) else { return false };
        // REG_RIP is a small positive constant of the C library's.
        let place = usize::try_from(libc::REG_RIP).ok().and_then(|at| context.uc_mcontext.gregs.get_mut(at));
        place.is_some_and(|place| {
            *place = rip.cast_signed();
            true
        })
    }
}
