//! Holds every other thread of the process.

use std::io;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Straggler, StragglerReason, Stragglers};
use crate::handler::Interrupted;
use crate::lack::ProcessorLack;
use crate::round::{self, Asked, Round, Sleepers};
use crate::signal;
use crate::sleeper::{self, Sight, Sleeper};
use crate::slot;
use crate::task::{self, Tasks, Tid};
use crate::turn::{LIMITS_ON_A_BUSY_MACHINE, Turn};
use crate::word::ThreadWords;
use crate::x86_64::set_rip;

/// The time that the first attempt waits before it releases all threads again; each later attempt waits twice as long.
/// If the last hold took longer, because there were more busy threads than processors, the next hold begins with twice
/// the time of the last hold, up to [`LONGEST_PATIENCE`].
pub(crate) const FIRST_PATIENCE: Duration = Duration::from_millis(4);
/// The longest wait of an attempt, except for the last one: with more attempts, fewer threads are just starting or
/// ending.
const LONGEST_PATIENCE: Duration = Duration::from_millis(64);

/// The duration of the attempt that succeeded last, in microseconds.
static LAST: AtomicU64 = AtomicU64::new(0);

fn first_patience() -> Duration {
    let last = Duration::from_micros(LAST.load(Ordering::Relaxed));
    (last * 2).clamp(FIRST_PATIENCE, LONGEST_PATIENCE)
}

/// The interval at which a thread that blocks the signal is inspected, while no thread is held.
const LOOK: Duration = Duration::from_micros(500);

/// Every other thread of the process waits in the signal handler until this value is dropped, except for the
/// [sleepers](Held::sleepers) of [`hold_or_look`].
///
/// The thread that has this value must not need anything that a held thread may own. The thread must not allocate or
/// free memory, lock, print, log, panic, start or join a thread, change credentials (`setuid` sends a signal to every
/// thread), or fork. The thread may make system calls, and may read and write memory that belongs to it.
///
/// On drop, cores are serialised before any thread resumes: all at once by membarrier(2), if the process is registered
/// for `PRIVATE_EXPEDITED_SYNC_CORE`; else by CPUID in each thread.
#[derive(Debug)]
#[must_use = "the threads go on when it is dropped"]
pub struct Held {
    /// Dropped before the turn ends.
    round: Round,
    _turn: Turn,
}

/// Holds every other thread of the process.
///
/// A thread that blocks the signal may block it only for a moment, and may in that moment wait for a lock that a held
/// thread owns. So after some milliseconds this function releases all threads, waits for the threads that blocked the
/// signal, and asks all threads again, with twice the patience up to a bound, until `limit` has passed since this thread's turn. If the threads that are
/// missing then are runnable, and only wait for a processor, this function waits for up to ten times `limit`.
///
/// If the process has no other thread, no signal is sent. [`counts`](crate::counts) has the effects of the signal on
/// threads.
///
/// # Errors
///
/// [`Error::NotReached`] names the threads that did not enter the handler, and why. [`Error::Busy`] if another thread
/// holds or asks for all of `limit`, or if other threads have their turns for all of ten times `limit`, [`Error::Nested`] if this thread does. [`Error::Replaced`] if other code has taken
/// the signal. After an error, this call holds no thread.
pub fn hold(limit: Duration) -> Result<Held, Error> {
    stop(limit, Sleepers::Asked)
}

/// Works like [`hold`], but a thread that blocks the signal, waits for it, or sleeps uninterruptibly is not held. Such
/// a thread is inspected where it sleeps in the kernel: [`Held::sleepers`]. All facts found about such a thread hold if
/// [`Held::awake`] names no thread afterwards.
///
/// # Errors
///
/// As [`hold`]: such a thread that runs all the time is named.
pub fn hold_or_look(limit: Duration) -> Result<Held, Error> {
    stop(limit, Sleepers::LookedAt)
}

fn stop(limit: Duration, sleepers: Sleepers) -> Result<Held, Error> {
    let turn = Turn::take(Some(limit))?;
    let begin = Instant::now();
    let signal = signal::ready()?;
    let list = |source| Error::List { source };
    let tasks = Tasks::open().map_err(list)?;
    let mut patience = first_patience();
    let busy = limit.saturating_mul(LIMITS_ON_A_BUSY_MACHINE);
    loop {
        // Threads that start meanwhile need slots, too. If the slots are still too few, the attempt reports that.
        let count = tasks.count().map_err(list)?;
        slot::reserve(count + count / 4 + 16 + round::debts());
        let left = limit.saturating_sub(begin.elapsed());
        let mut round = Round::begin(signal, sleepers);
        // The last attempt takes all the remaining time, so that no attempt is too short to be useful.
        let wait = if left < patience * 2 { left } else { patience };
        let attempt = Instant::now();
        let failure = match hold_all(&tasks, &mut round, attempt + wait, deadline(begin, busy), &turn) {
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

/// Returns the end of a wait of at most `limit`.
pub(crate) fn deadline(begin: Instant, limit: Duration) -> Instant {
    // Far enough for a caller that passes an unlimited time.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    begin.checked_add(limit).unwrap_or(begin + YEAR)
}

/// The result of an attempt that failed. Made while other threads are held, so without allocating memory.
#[expect(clippy::large_enum_variant, reason = "a box would take memory while others are held")]
enum Failure {
    Error(Error),
    Crowded,
    Late(Stragglers),
    Restless { known: u64, counted: u64 },
}

/// Asks threads until every other thread is held, or until `until`; until `latest`, if the threads that are missing then only
/// lack a processor.
///
/// A count shows that the set is complete. The list may lack threads (see [`Tasks::each`]), but the count does not. A
/// held thread neither starts threads nor ends. So if the kernel counts as many threads as the sum of held threads,
/// threads that are known never to run again, and this thread, then there is no other thread. Threads that never run
/// again may vanish; such a thread that was seen before the count and is still there afterwards was counted. Threads
/// that were inspected in their sleep belong to the sum, too; [`Held::awake`] tells later whether they slept all the
/// time.
#[expect(clippy::result_large_err, reason = "a box would take memory while others are held")]
fn hold_all(tasks: &Tasks, round: &mut Round, mut until: Instant, latest: Instant, turn: &Turn) -> Result<(), Failure> {
    let list = |source| Failure::Error(Error::List { source });
    let me = Tid::current();
    let mut lack = ProcessorLack::default();
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
        while !round.wait(until).map_err(list)?
            && let Some(stragglers) = round.stragglers()
        {
            if !lack.explains(&stragglers) || Instant::now() >= latest {
                return Err(Failure::Late(stragglers));
            }
            // A runnable thread that does not block the signal needs nothing of the held threads but their processors. So the held
            // threads are not released.
            turn.waits_for_processors();
            until = latest.min(Instant::now() + FIRST_PATIENCE);
        }
        // The refresh comes before the count, because a thread that runs may create other threads.
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
    stragglers.push(Straggler { tid, name: task::name(tid).ok().flatten(), why: StragglerReason::QueueFull });
    stragglers
}

/// Waits until none of the threads that blocked the signal blocks it any more or, where inspecting a sleeping thread is
/// enough, until those that block it sleep. No thread is held meanwhile. Returns the threads that still block at the
/// deadline.
fn wait_for(stragglers: &Stragglers, signal: i32, sleepers: Sleepers, deadline: Instant) -> Option<Stragglers> {
    let sleeps = |tid| sleepers == Sleepers::LookedAt && matches!(sleeper::look(tid), Ok(Sight::Asleep(_)));
    loop {
        thread::sleep(LOOK.min(deadline.saturating_duration_since(Instant::now())));
        let mut blocking = Stragglers::new();
        let again = stragglers.iter().filter_map(|straggler| round::straggler(straggler.tid, signal, false));
        again
            .filter(|straggler| matches!(straggler.why, StragglerReason::Blocks { .. } | StragglerReason::Waits { .. }))
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
    /// Returns the held threads, in the order in which they were asked. Allocates no memory.
    pub fn threads(&self) -> impl Iterator<Item = Interrupted<'_>> {
        self.round.come().filter_map(|slot| {
            let context = slot.context.load(Ordering::Relaxed);
            // SAFETY: the thread stored the address of its own signal frame before it became Here, and waits in its
            // handler, with that frame beneath, while `self` lives. Frames are changed only through `&mut self`.
            let context = unsafe { context.as_ref() };
            context.map(|context| Interrupted::new(Tid::new(slot.tid()), context))
        })
    }

    /// Returns the held threads' words, in the order of [`Held::threads`]. Allocates no memory.
    pub fn words(&self) -> impl Iterator<Item = (Tid, &AtomicU64)> {
        self.own_words().map(|(tid, words)| (tid, &words.word))
    }

    /// Returns all words of each held thread's own memory, in the order of [`Held::threads`].
    pub(crate) fn own_words(&self) -> impl Iterator<Item = (Tid, &ThreadWords)> {
        self.round.come().filter_map(|slot| {
            let words = slot.words.load(Ordering::Relaxed);
            // SAFETY: the thread stored the address before it became Here, and waits in its handler while `self` lives.
            let words = unsafe { words.as_ref() };
            words.map(|words| (Tid::new(slot.tid()), words))
        })
    }

    /// Returns the threads that are not held but were inspected in their sleep, for [`hold_or_look`]. Allocates no
    /// memory.
    pub fn sleepers(&self) -> impl Iterator<Item = Sleeper> {
        self.round.sleepers()
    }

    /// Returns one of the [sleepers](Held::sleepers) that has run since it was inspected. If there is none, there was a
    /// moment in which all facts found about all threads were true at once.
    ///
    /// # Errors
    ///
    /// The error of open(2) or read(2) of the files in `/proc`.
    pub fn awake(&self) -> io::Result<Option<Tid>> {
        for sleeper in self.sleepers() {
            if !sleeper.has_slept()? {
                return Ok(Some(sleeper.tid()));
            }
        }
        Ok(None)
    }

    /// Returns the number of threads that were inspected in their sleep.
    pub(crate) fn asleep(&self) -> u64 {
        self.round.asleep()
    }

    /// Returns the number of held threads.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.round.here()
    }

    /// Changes the address at which a held thread resumes. Returns `false` if no such thread is held.
    ///
    /// # Safety
    ///
    /// With all its registers, its stack and all state that other code keeps about the thread, the thread can resume at
    /// `rip`: the instructions there have the effects that those at the old address were to have.
    pub unsafe fn set_rip(&mut self, tid: Tid, rip: u64) -> bool {
        let Some(slot) = self.round.come().find(|slot| slot.tid() == tid.get()) else { return false };
        let context = slot.context.load(Ordering::Relaxed);
        // SAFETY: as in `threads`; `&mut self` excludes other borrows, and the thread reads its frame only after it has
        // been released.
        let Some(context) = (unsafe { context.as_mut() }) else { return false };
        set_rip(context, rip)
    }
}
