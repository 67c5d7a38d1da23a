//! Runs a function in each thread, between any two of the thread's instructions. No thread waits for another thread.

use std::cell::UnsafeCell;
use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::handler::Interrupted;
use crate::hold::{FIRST_PATIENCE, deadline, queue_full};
use crate::lack::ProcessorLack;
use crate::round::{self, Asked, Round, Sleepers, Work};
use crate::signal;
use crate::slot;
use crate::system;
use crate::task::{self, Tasks, Tid};
use crate::turn::{LIMITS_ON_A_BUSY_MACHINE, Turn};

/// A question that a thread can answer between any two of its instructions.
///
/// # Safety
///
/// `probe` runs in a signal handler of a thread that may be anywhere: in the allocator, in the C library, on an
/// alternate stack. So `probe` must be async-signal-safe (signal-safety(7)): it allocates and frees no memory, takes no
/// lock that a thread may hold when it is interrupted, uses no thread-local that is initialised at its first use, does
/// not panic, does not log, and returns. `probe` uses at most 2 KiB of stack, and does not probe or hold threads. The
/// handler restores `errno` after `probe`.
pub unsafe trait Probe: Sync {
    /// The result of the probe.
    type Answer: Copy + Send;

    /// Runs in the thread.
    fn probe(&self, interrupted: Interrupted<'_>) -> Self::Answer;
}

/// A probe on the way into one thread, and its answer on the way back.
#[repr(C)]
struct Question<'p, P: Probe> {
    /// The first field, so that a pointer to the work is also a pointer to the question.
    work: Work,
    probe: &'p P,
    answer: UnsafeCell<MaybeUninit<P::Answer>>,
}

impl<'p, P: Probe> Question<'p, P> {
    fn new(probe: &'p P) -> Question<'p, P> {
        // SAFETY: `run` expects a `Question` of this type, which begins with this work.
        let work = unsafe { Work::new(Self::run) };
        Question { work, probe, answer: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// # Safety
    ///
    /// `work` is the beginning of a live `Question` of this type, and nothing else uses its answer.
    unsafe fn run(work: *mut Work, interrupted: Interrupted<'_>) {
        let question: *mut Self = work.cast();
        // SAFETY: the question lives.
        let question = unsafe { &*question };
        let answer = question.probe.probe(interrupted);
        // SAFETY: nothing else uses the answer until the thread has announced that it is done.
        unsafe { (*question.answer.get()).write(answer) };
    }
}

/// Runs a probe in every other thread of the process, and returns the answers.
///
/// When this function returns, every thread that existed at the call has answered or ended. Threads that have started
/// since may have answered, too. A thread resumes as soon as it has answered.
///
/// # Errors
///
/// [`Error::NotReached`] names the threads that did not answer within `limit`, and why; the other answers are lost. Threads that
/// are runnable, and only wait for a processor, are waited for up to ten times `limit`.
/// Otherwise as for [`hold`](crate::hold()). A thread that has begun to answer is waited for even beyond `limit`.
pub fn run_in_each<P: Probe>(probe: &P, limit: Duration) -> Result<Vec<(Tid, P::Answer)>, Error> {
    let turn = Turn::take(Some(limit))?;
    let begin = Instant::now();
    let signal = signal::ready()?;
    let list = |source| Error::List { source };
    let tasks = Tasks::open().map_err(list)?;
    let mut known = HashSet::from([Tid::current()]);
    let mut answers = Vec::new();
    loop {
        // A pass may miss threads. But if all threads that the pass lists were known before the count, and they are as
        // many as the count, then the list is complete: a thread that was known before and is still listed was counted.
        let counted = tasks.count().map_err(list)?;
        let mut listed = 0_u64;
        let mut new = Vec::new();
        let _: ControlFlow<()> = tasks
            .each(|tid| {
                listed += 1;
                if !known.contains(&tid) {
                    new.push(tid);
                }
                ControlFlow::Continue(())
            })
            .map_err(list)?;
        if new.is_empty() && listed == counted {
            return Ok(answers);
        }
        if begin.elapsed() >= limit {
            let known = u64::try_from(known.len()).unwrap_or(u64::MAX);
            return Err(Error::Restless { known, counted, limit });
        }
        answers.append(&mut ask(probe, &new, signal, begin, limit, &turn)?);
        known.extend(new);
    }
}

/// Runs a probe in the calling thread, as the signal interrupts the thread here.
///
/// # Errors
///
/// As for [`run_in_each`].
pub fn run_here<P: Probe>(probe: &P) -> Result<P::Answer, Error> {
    let limit = crate::DEFAULT_LIMIT;
    let turn = Turn::take(Some(limit))?;
    let begin = Instant::now();
    let signal = signal::ready()?;
    let me = Tid::current();
    let action = |source| Error::Action { signal, source };
    let before = system::mask(libc::SIG_UNBLOCK, task::bit(signal)).map_err(action)?;
    let answers = ask(probe, &[me], signal, begin, limit, &turn);
    system::mask(libc::SIG_SETMASK, before).map_err(action)?;
    // The only thread is the calling one, which has not ended.
    let nobody = Error::ForeignList { tid: me };
    answers?.first().map(|(_, answer)| *answer).ok_or(nobody)
}

/// Runs a probe in these threads. A thread that has ended does not answer.
fn ask<P: Probe>(
    probe: &P,
    tids: &[Tid],
    signal: i32,
    begin: Instant,
    limit: Duration,
    turn: &Turn,
) -> Result<Vec<(Tid, P::Answer)>, Error> {
    let list = |source| Error::List { source };
    // The round uses the questions, so they live longer than the round: it is dropped first, and waits for threads that
    // use them.
    let questions: Vec<Question<'_, P>> = tids.iter().map(|_| Question::new(probe)).collect();
    let mut answers = Vec::with_capacity(tids.len());
    // Some slots may still be in use for threads that did not arrive in earlier rounds.
    slot::reserve(u64::try_from(tids.len()).unwrap_or(u64::MAX).saturating_add(round::debts()));
    let mut round = Round::begin(signal, Sleepers::Asked);
    for (tid, question) in tids.iter().zip(&questions) {
        let work = ptr::from_ref(question).cast_mut().cast();
        loop {
            match round.ask(*tid, work).map_err(list)? {
                Asked::Well | Asked::Unasked => break,
                // No thread waits for another thread, so memory may be allocated.
                Asked::Crowded => slot::reserve(u64::from(slot::capacity()) + 1),
                Asked::QueueFull => return Err(Error::NotReached { stragglers: Box::new(queue_full(*tid)), limit }),
            }
        }
    }
    let mut lack = ProcessorLack::default();
    let mut until = deadline(begin, limit);
    let latest = deadline(begin, limit.saturating_mul(LIMITS_ON_A_BUSY_MACHINE));
    while !round.wait(until).map_err(list)?
        && let Some(stragglers) = round.stragglers()
    {
        if !lack.explains(&stragglers) || Instant::now() >= latest {
            return Err(Error::NotReached { stragglers: Box::new(stragglers), limit });
        }
        until = latest.min(Instant::now() + FIRST_PATIENCE);
        turn.waits_for_processors();
    }
    round.settle();
    for slot in round.come() {
        let question: *const Question<'_, P> = slot.work.load(Ordering::Relaxed).cast_const().cast();
        // SAFETY: the slots of this round have pointers to `questions`, which live.
        let question = unsafe { &*question };
        // SAFETY: the thread is Here, so it has written its answer and does not use the answer any more.
        let answer = unsafe { *question.answer.get() };
        // SAFETY: as above: the answer is written.
        answers.push((Tid::new(slot.tid()), unsafe { answer.assume_init() }));
    }
    Ok(answers)
}
