//! Tells threads that only lack a processor from threads that do not enter the signal handler although they run.

use std::time::Duration;

use crate::error::{StragglerReason, Stragglers};
use crate::sleeper;
use crate::task::{self, ThreadState, Tid};

/// How long a thread may run with the signal blocked before it counts as one that blocks the signal. A thread that returns from the
/// handler of an earlier round, or starts another thread, runs for microseconds until it unblocks the signal.
const MOMENT: Duration = Duration::from_millis(1);

/// The number of threads that are remembered: as many as [`Stragglers`] names.
const REMEMBERED: usize = 8;

/// The looks of one attempt at threads that have not entered the handler. Allocates no memory.
#[derive(Debug, Default)]
pub(crate) struct ProcessorLack {
    /// The threads that blocked the signal, with their run times in nanoseconds when they were seen first.
    blocking: [Option<(Tid, u64)>; REMEMBERED],
}

impl ProcessorLack {
    /// Returns whether all named stragglers are runnable, and would enter the handler if they had a processor. A straggler that
    /// blocks the signal is believed to do so for a moment, until it has run for [`MOMENT`] since the first look.
    pub(crate) fn explains(&mut self, stragglers: &Stragglers) -> bool {
        stragglers.iter().all(|straggler| match straggler.why {
            StragglerReason::Late { state } => state == ThreadState::Running,
            StragglerReason::Blocks { .. } => self.blocks_for_a_moment(straggler.tid),
            _ => false,
        })
    }

    fn blocks_for_a_moment(&mut self, tid: Tid) -> bool {
        let runs = task::status(tid).ok().flatten().is_some_and(|status| status.state == ThreadState::Running);
        // 0: the kernel does not count the time.
        let Some(time) = sleeper::time(tid).ok().filter(|time| runs && *time != 0) else { return false };
        if let Some((_, first)) = self.blocking.iter().flatten().find(|(known, _)| *known == tid) {
            return Duration::from_nanos(time.saturating_sub(*first)) < MOMENT;
        }
        let free = self.blocking.iter_mut().find(|place| place.is_none());
        free.is_some_and(|place| {
            *place = Some((tid, time));
            true
        })
    }
}
