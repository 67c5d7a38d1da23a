//! A round: one request to some or all threads, from the first signal until the last thread has answered or is given
//! up. To *ask* a thread means to send it the signal.
//!
//! All code from [`Round::begin`] to the drop runs without taking a lock and without allocating memory, because a held
//! thread may own any lock.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clear;
use crate::error::{Straggler, StragglerReason, Stragglers};
use crate::handler::Interrupted;
use crate::sleeper::{self, Sight, Sleeper};
use crate::slot::{self, At, Phase, Slot};
use crate::system;
use crate::task::{self, Presence, ThreadState, Tid};

/// The round whose threads have to wait; the next round's number while there is no round. Only the thread whose turn it
/// is changes this.
static GATE: AtomicU32 = AtomicU32::new(1);

/// The round in the upper half. In the lower half, the number of its asked threads that have neither arrived nor been
/// given up.
static OUTSTANDING: AtomicU64 = AtomicU64::new(0);

/// The number of slots that are Owed, including slots that are just changing to or from Owed.
static DEBTS: AtomicU32 = AtomicU32::new(0);

/// The first slot that was never used. Only the thread whose turn it is changes this.
static USED: AtomicU32 = AtomicU32::new(0);

/// The upper half of the value that this crate's signals carry; the lower half is the slot's number.
const COOKIE: u32 = 0x6d6f_646c;

/// Returns the slot number in a signal's value, if this crate has sent the signal.
pub(crate) fn slot_number(value: u64) -> Option<u32> {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]) == COOKIE).then(|| u32::from_be_bytes([e, f, g, h]))
}

fn value_of(number: u32) -> u64 {
    u64::from(COOKIE) << 32 | u64::from(number)
}

/// Records the delivery of a signal whose round had already given up on the thread.
pub(crate) fn debt_is_paid() {
    DEBTS.fetch_sub(1, Ordering::Relaxed);
}

/// Records that one thread of a round has arrived, or is given up. The last one wakes the asker.
pub(crate) fn count_down(round: u32) {
    let less = OUTSTANDING.try_update(Ordering::AcqRel, Ordering::Acquire, |outstanding| {
        (outstanding >> 32 == u64::from(round)).then(|| outstanding.saturating_sub(1))
    });
    if less.is_ok_and(|before| count_of(before) == 1) {
        system::wake(word(), 1);
    }
}

/// Returns the number of slots that cannot be used because their signal is still pending after its round.
pub(crate) fn debts() -> u64 {
    DEBTS.load(Ordering::Relaxed).into()
}

fn count_of(outstanding: u64) -> u32 {
    let [.., a, b, c, d] = outstanding.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Returns the word that the asker sleeps on: the lower half, which on x86-64 comes first.
fn word() -> *const u32 {
    OUTSTANDING.as_ptr().cast()
}

/// Whether released threads have to serialise their cores themselves. A thread that reads the value of a later round
/// has been serialised by that round's call, or serialises once too often.
static SERIALISE: AtomicBool = AtomicBool::new(false);

/// Waits until the round is over. Returns whether the thread has to serialise its core before it resumes.
pub(crate) fn wait_at_gate(round: u32) -> bool {
    while GATE.load(Ordering::Acquire) == round {
        system::wait(GATE.as_ptr(), round, None);
    }
    SERIALISE.load(Ordering::Relaxed)
}

/// The work that a thread has to do: the beginning of a larger structure, which `run` knows.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Work {
    run: unsafe fn(*mut Work, Interrupted<'_>),
}

impl Work {
    /// # Safety
    ///
    /// `run` requires no more than this: it is called at most once, on the work itself, while the work lives.
    pub(crate) const unsafe fn new(run: unsafe fn(*mut Work, Interrupted<'_>)) -> Work {
        Work { run }
    }

    /// Does the work.
    ///
    /// # Safety
    ///
    /// The work lives until this function returns, and nothing else runs it.
    pub(crate) unsafe fn run(work: *mut Work, interrupted: Interrupted<'_>) {
        // SAFETY: the work lives.
        let run = unsafe { (*work).run };
        // SAFETY: `run` gets the work that it was made with, once.
        unsafe { run(work, interrupted) };
    }
}

/// The result of asking a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// The thread will arrive, or has ended, or is known never to arrive.
    Well,
    /// There is no slot left.
    Crowded,
    /// The kernel queues no more signals.
    QueueFull,
    /// No signal was sent, because the thread blocks the signal or waits for it. The thread is asked when it no longer
    /// does so.
    Unasked,
}

/// Tells whether a thread that cannot be asked may be inspected instead, while it sleeps in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sleepers {
    /// No: each thread has to arrive.
    Asked,
    /// Yes.
    LookedAt,
}

/// The time that a thread that was ever found to wait for the signal must have run, since the round wanted to ask it,
/// before it is sent the signal. The time is the thread's own CPU time: on a busy machine, a thread may be about to
/// return from such a wait, or to begin one, for a long time.
const SHY: Duration = Duration::from_millis(3);

/// The first part of a wait. Without unasked threads, each later part is twice as long as the one before.
const FIRST_LOOK: Duration = Duration::from_micros(500);

/// A round of the thread whose turn it is. Dropping it gives up threads that have not arrived, and releases threads
/// that wait.
#[derive(Debug)]
pub(crate) struct Round {
    number: u32,
    signal: i32,
    sleepers: Sleepers,
    begun: Instant,
    /// The number behind the last slot of this round.
    top: u32,
    /// The number of the next slot to check for a free one.
    next: u32,
    /// The slot of the thread that is probably listed next.
    hint: u32,
}

impl Round {
    /// Begins a round. The caller must have its turn.
    pub(crate) fn begin(signal: i32, sleepers: Sleepers) -> Round {
        let number = GATE.load(Ordering::Relaxed);
        OUTSTANDING.store(u64::from(number) << 32, Ordering::Relaxed);
        let round = Round { number, signal, sleepers, begun: Instant::now(), top: 0, next: 0, hint: 0 };
        if DEBTS.load(Ordering::Relaxed) != 0 {
            round.forget_the_dead();
        }
        round
    }

    fn at(&self, phase: Phase) -> At {
        At { round: self.number, phase }
    }

    /// Clears the debts of threads that have ended.
    fn forget_the_dead(&self) {
        for slot in slots(USED.load(Ordering::Relaxed)) {
            let at = slot.at();
            let dead = at.phase == Phase::Owed && matches!(task::presence(Tid::new(slot.tid())), Ok(Presence::Gone));
            if dead && slot.go(at, self.at(Phase::Free)) {
                debt_is_paid();
            }
        }
    }

    /// Returns the slots of this round, with their phases.
    fn slots(&self) -> impl Iterator<Item = (&'static Slot, At)> {
        let number = self.number;
        let used = slots(self.top).map(|slot| (slot, slot.at()));
        used.filter(move |(_, at)| at.round == number && !matches!(at.phase, Phase::Free | Phase::Owed))
    }

    fn count(&self, phase: Phase) -> u64 {
        self.slots().map(|(_, at)| u64::from(at.phase == phase)).sum()
    }

    /// Returns the number of threads that have arrived.
    pub(crate) fn here(&self) -> u64 {
        self.count(Phase::Here)
    }

    /// Returns the number of threads that will never arrive and are still listed.
    pub(crate) fn still_absent(&self) -> u64 {
        let absent = self.slots().filter(|(_, at)| at.phase == Phase::Absent);
        absent.map(|(slot, _)| u64::from(!matches!(task::presence(Tid::new(slot.tid())), Ok(Presence::Gone)))).sum()
    }

    /// Returns the slots of threads that have arrived.
    pub(crate) fn come(&self) -> impl Iterator<Item = &'static Slot> {
        self.slots().filter(|(_, at)| at.phase == Phase::Here).map(|(slot, _)| slot)
    }

    /// Returns whether this round has a slot for the thread.
    pub(crate) fn knows(&mut self, tid: Tid) -> bool {
        let is = |number: &u32| {
            slot::get(*number).is_some_and(|slot| {
                let at = slot.at();
                slot.tid() == tid.get() && at.round == self.number && !matches!(at.phase, Phase::Free | Phase::Owed)
            })
        };
        let found = Some(self.hint).filter(|hint| *hint < self.top).filter(is).or_else(|| (0..self.top).find(is));
        if let Some(number) = found {
            self.hint = number + 1;
        }
        found.is_some()
    }

    /// Returns the number of threads that were inspected in their sleep.
    pub(crate) fn asleep(&self) -> u64 {
        self.count(Phase::Asleep)
    }

    /// Inspects again the threads that were inspected in their sleep, so that their data is as recent as possible.
    /// Returns whether all of them still sleep.
    pub(crate) fn refresh(&self) -> io::Result<bool> {
        for (slot, at) in self.slots().filter(|(_, at)| at.phase == Phase::Asleep) {
            let Sight::Asleep(sleeper) = sleeper::look(Tid::new(slot.tid()))? else {
                slot.put(at.to(Phase::Unasked));
                return Ok(false);
            };
            slot.set_sleeper(&sleeper);
        }
        Ok(true)
    }

    /// Returns the threads that were inspected in their sleep.
    pub(crate) fn sleepers(&self) -> impl Iterator<Item = Sleeper> {
        self.slots().filter(|(_, at)| at.phase == Phase::Asleep).map(|(slot, _)| slot.sleeper())
    }

    /// Asks a thread that this round has no slot for yet.
    pub(crate) fn ask(&mut self, tid: Tid, work: *mut Work) -> io::Result<Asked> {
        let may_be_asked = (!clear::is_forbidden(tid) || self.rests(tid)?) && self.may_be_asked(tid)?;
        if may_be_asked
            && DEBTS.load(Ordering::Relaxed) != 0
            && let Some(asked) = self.ask_debtor(tid, work)?
        {
            return Ok(asked);
        }
        let Some(number) = self.free_slot(tid) else { return Ok(Asked::Crowded) };
        // The slot was just found, so it exists.
        let Some(slot) = slot::get(number) else { return Ok(Asked::Crowded) };
        slot.work.store(work, Ordering::Relaxed);
        if !may_be_asked {
            slot.ran.store(0, Ordering::Relaxed);
            slot.put(self.at(Phase::Unasked));
            return Ok(Asked::Unasked);
        }
        OUTSTANDING.fetch_add(1, Ordering::Relaxed);
        slot.put(self.at(Phase::Asked));
        self.send(number, slot)
    }

    /// Returns whether a shy thread has to arrive and sleeps elsewhere than in a wait for the signal. Such a thread is not about to
    /// begin a wait. A shy thread was once found to wait for the signal, and may begin or end such a wait between an inspection and
    /// the signal while it runs.
    fn rests(&self, tid: Tid) -> io::Result<bool> {
        let rests = |sleeper: Sleeper| !sleeper.waits_for(self.signal);
        Ok(self.sleepers == Sleepers::Asked && matches!(sleeper::look(tid)?, Sight::Asleep(sleeper) if rests(sleeper)))
    }

    /// Returns whether a shy thread has run for so long without falling asleep that it is not about to wait. Where the
    /// kernel does not count the time that threads run, the time since the round began counts.
    fn runs_on(&self, tid: Tid, slot: &Slot) -> io::Result<bool> {
        let now = sleeper::time(tid)?;
        if now == 0 {
            return Ok(self.begun.elapsed() >= SHY);
        }
        let before = slot.ran.load(Ordering::Relaxed);
        if before == 0 {
            // The first look of this round since the thread is known to be shy.
            slot.ran.store(now, Ordering::Relaxed);
            return Ok(false);
        }
        Ok(Duration::from_nanos(now.saturating_sub(before)) >= SHY)
    }

    /// Returns whether a thread may be sent the signal: it neither blocks the signal nor waits for it. A thread that
    /// has ended may be.
    fn may_be_asked(&self, tid: Tid) -> io::Result<bool> {
        if clear::is(tid, self.signal) {
            return Ok(true);
        }
        let Some(status) = task::status(tid)? else { return Ok(true) };
        // For example in vfork: the signal would stay pending until the thread wakes up.
        let sleeps_on = status.state == ThreadState::Uninterruptible && self.sleepers == Sleepers::LookedAt;
        // The C library blocks all signals for a moment where a thread starts, ends or creates another thread.
        if status.blocks(self.signal) || sleeps_on {
            return Ok(false);
        }
        // While a thread waits for signals, the kernel takes them out of the thread's mask.
        let waits = status.state == ThreadState::Sleeping
            && matches!(sleeper::look(tid)?, Sight::Asleep(sleeper) if sleeper.waits_for(self.signal));
        if waits {
            clear::forbid(tid);
        } else {
            clear::set(tid);
        }
        Ok(!waits)
    }

    /// Checks the unasked threads again: asks those that may be asked by now, and, where inspecting is enough, records
    /// where the others sleep. Returns whether any unasked thread is left.
    fn look_at_unasked(&self) -> io::Result<bool> {
        let mut left = false;
        for number in 0..self.top {
            let Some(slot) = slot::get(number) else { continue };
            if slot.at() != self.at(Phase::Unasked) {
                continue;
            }
            let tid = Tid::new(slot.tid());
            match task::presence(tid)? {
                Presence::Present => {}
                Presence::Absent => {
                    slot.put(self.at(Phase::Absent));
                    continue;
                }
                Presence::Gone => {
                    slot.put(self.at(Phase::Free));
                    continue;
                }
            }
            let shy = clear::is_forbidden(tid);
            if (!shy || self.rests(tid)? || self.runs_on(tid, slot)?) && self.may_be_asked(tid)? {
                OUTSTANDING.fetch_add(1, Ordering::Relaxed);
                slot.put(self.at(Phase::Asked));
                if self.send(number, slot)? == Asked::Well {
                    continue;
                }
                slot.put(self.at(Phase::Unasked));
            } else if self.sleepers == Sleepers::LookedAt {
                match sleeper::look(tid)? {
                    Sight::Asleep(sleeper) => {
                        slot.set_sleeper(&sleeper);
                        slot.put(self.at(Phase::Asleep));
                        continue;
                    }
                    Sight::Kernel => {
                        slot.put(self.at(Phase::Absent));
                        continue;
                    }
                    Sight::Gone => {
                        slot.put(self.at(Phase::Free));
                        continue;
                    }
                    Sight::Running | Sight::Uncounted => {}
                }
            }
            left = true;
        }
        Ok(left)
    }

    fn free_slot(&mut self, tid: Tid) -> Option<u32> {
        let number = (self.next..slot::capacity())
            .find(|number| slot::get(*number).is_some_and(|slot| slot.give(self.number, tid.get())))?;
        self.next = number + 1;
        self.reach(number);
        Some(number)
    }

    fn reach(&mut self, number: u32) {
        self.top = self.top.max(number + 1);
        USED.fetch_max(self.top, Ordering::Relaxed);
    }

    fn send(&self, number: u32, slot: &Slot) -> io::Result<Asked> {
        let Err(error) = system::queue(slot.tid(), self.signal, value_of(number)) else { return Ok(Asked::Well) };
        // No signal was sent. But a debtor's earlier signal may have brought the thread into the handler meanwhile.
        if slot.go(self.at(Phase::Asked), self.at(Phase::Free)) {
            count_down(self.number);
        }
        match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(Asked::Well),
            Some(libc::EAGAIN) => Ok(Asked::QueueFull),
            _ => Err(error),
        }
    }

    /// Asks a thread to which a signal of an earlier round is still pending. Returns `None` and does nothing if there
    /// is no such signal.
    fn ask_debtor(&mut self, tid: Tid, work: *mut Work) -> io::Result<Option<Asked>> {
        let owes = |slot: &Slot| slot.tid() == tid.get() && slot.at().phase == Phase::Owed;
        let used = USED.load(Ordering::Relaxed);
        let Some(number) = (0..used).find(|number| slot::get(*number).is_some_and(owes)) else { return Ok(None) };
        let Some(slot) = slot::get(number) else { return Ok(None) };
        let owed = slot.at();
        let presence = task::presence(tid)?;
        slot.work.store(work, Ordering::Relaxed);
        if presence == Presence::Present {
            OUTSTANDING.fetch_add(1, Ordering::Relaxed);
        }
        let to = self.at(match presence {
            Presence::Present => Phase::Asked,
            Presence::Absent => Phase::Absent,
            Presence::Gone => Phase::Free,
        });
        if owed.phase != Phase::Owed || !slot.go(owed, to) {
            // The thread has just got the signal.
            if presence == Presence::Present {
                count_down(self.number);
            }
            return Ok(None);
        }
        debt_is_paid();
        self.reach(number);
        if presence != Presence::Present {
            return Ok(Some(Asked::Well));
        }
        // The pending signal is enough; but a new thread may have got the number of a thread that has ended.
        let waits = task::status(tid)?.is_some_and(|status| status.pending & task::bit(self.signal) != 0);
        if waits || slot.at() != to { Ok(Some(Asked::Well)) } else { self.send(number, slot).map(Some) }
    }

    /// Waits until each thread that was asked has arrived, has ended, or is known never to arrive, and each unasked
    /// thread is known to sleep, where inspecting is enough. Returns `false` if `until` passes before.
    pub(crate) fn wait(&self, until: Instant) -> io::Result<bool> {
        let mut look = FIRST_LOOK;
        loop {
            let unasked = self.look_at_unasked()?;
            let count = count_of(OUTSTANDING.load(Ordering::Acquire));
            if count == 0 && !unasked {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            system::wait(word(), count, Some(look.min(left)));
            if count_of(OUTSTANDING.load(Ordering::Acquire)) == count {
                self.give_up_the_absent()?;
                look = if unasked { FIRST_LOOK } else { look * 2 };
            }
        }
    }

    fn give_up_the_absent(&self) -> io::Result<()> {
        for (slot, at) in self.slots().filter(|(_, at)| at.phase == Phase::Asked) {
            let to = match task::presence(Tid::new(slot.tid()))? {
                Presence::Present => continue,
                Presence::Absent => Phase::Absent,
                Presence::Gone => Phase::Free,
            };
            if slot.go(at, self.at(to)) {
                count_down(self.number);
            }
        }
        Ok(())
    }

    /// Returns the threads that have not arrived, and why; `None` if all have arrived by now.
    pub(crate) fn stragglers(&self) -> Option<Stragglers> {
        let mut stragglers = Stragglers::new();
        for (slot, at) in self.slots().filter(|(_, at)| matches!(at.phase, Phase::Asked | Phase::Unasked)) {
            let tid = Tid::new(slot.tid());
            clear::forget(tid);
            if !stragglers.has_room() {
                stragglers.push_nameless();
            } else if let Some(straggler) = straggler(tid, self.signal, at.phase == Phase::Asked) {
                stragglers.push(straggler);
            }
        }
        Some(stragglers).filter(|stragglers| stragglers.count() != 0)
    }

    /// Gives up the threads that have not arrived, and records that their signals are still pending.
    fn give_up(&self) {
        for (slot, at) in self.slots() {
            if !matches!(at.phase, Phase::Asked | Phase::Absent) {
                continue;
            }
            // The count comes first, because the thread's handler may pay the debt at once.
            DEBTS.fetch_add(1, Ordering::Relaxed);
            if !slot.go(at, self.at(Phase::Owed)) {
                debt_is_paid();
            }
        }
    }

    /// Waits for threads that are running the work that they were lent. The wait is short, but has no known bound.
    pub(crate) fn settle(&self) {
        let busy =
            |(slot, at): &(&Slot, At)| at.phase == Phase::Claimed && !slot.work.load(Ordering::Relaxed).is_null();
        while self.slots().any(|slot| busy(&slot)) {
            let outstanding = count_of(OUTSTANDING.load(Ordering::Acquire));
            system::wait(word(), outstanding, Some(FIRST_LOOK));
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if count_of(OUTSTANDING.load(Ordering::Acquire)) != 0 || self.count(Phase::Absent) != 0 {
            self.give_up();
            self.settle();
        }
        if self.top != 0 {
            // One system call serialises all cores: on virtual processors, CPUID exits to the hypervisor, which takes
            // as long as a signal does.
            SERIALISE.store(system::sync_cores().is_err(), Ordering::Relaxed);
        }
        GATE.store(self.number.wrapping_add(1), Ordering::Release);
        if self.top != 0 {
            system::wake(GATE.as_ptr(), i32::MAX);
        }
    }
}

/// Returns the slots before this number.
fn slots(end: u32) -> impl Iterator<Item = &'static Slot> {
    (0..end).filter_map(slot::get)
}

/// Returns the reason that `/proc` gives for a thread that has not arrived; `None` if the thread has ended. `is_asked` tells whether
/// the thread was sent the signal.
pub(crate) fn straggler(tid: Tid, signal: i32, is_asked: bool) -> Option<Straggler> {
    // The handler runs with all signals blocked. A thread that was sent the signal, for which the signal is not pending any more, has
    // entered the handler, and only lacks a processor.
    let has_entered = |status: &task::Status| is_asked && status.pending & task::bit(signal) == 0;
    let why = match task::status(tid) {
        Ok(None) => return None,
        Err(_) => StragglerReason::Unknown,
        Ok(Some(status)) => match status.state {
            ThreadState::Ended => return None,
            ThreadState::Traced => StragglerReason::Traced { by: status.tracer },
            ThreadState::Stopped => StragglerReason::Stopped,
            ThreadState::Uninterruptible => StragglerReason::Uninterruptible,
            _ if status.blocks(signal) && !has_entered(&status) => StragglerReason::Blocks { signal },
            state => match sleeper::look(tid) {
                Ok(Sight::Asleep(sleeper)) if sleeper.waits_for(signal) => StragglerReason::Waits { signal },
                _ => StragglerReason::Late { state },
            },
        },
    };
    Some(Straggler { tid, name: task::name(tid).ok().flatten(), why })
}

/// Resets all slots in the child of a fork: the child has one thread, and no signal is pending for it.
pub(crate) fn forget_everything() {
    for slot in slots(USED.load(Ordering::Relaxed)) {
        slot.put(At { round: 0, phase: Phase::Free });
        slot.work.store(ptr::null_mut(), Ordering::Relaxed);
    }
    DEBTS.store(0, Ordering::Relaxed);
}
