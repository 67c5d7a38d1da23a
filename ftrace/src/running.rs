//! The recording under way.

use std::collections::HashMap;

use crate::filter::Filter;
use crate::identity::HostId;
use crate::trace::{Missed, Thread};
use crate::trampoline::reader::Counts;
use crate::trampoline::ring::Told;
use crate::trampoline::variants::Then;

/// The recording under way, as the table knows it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) host: HostId,
    pub(crate) filter: Filter,
    pub(crate) then: Then,
    pub(crate) session: u32,
    /// The records that were read from rings and are in no batch yet. Each thread's records are in order.
    pub(crate) pending: Vec<Pending>,
    /// The threads, by their numbers in the recording.
    pub(crate) threads: Vec<Thread>,
    /// The number of each reader's thread, by the address of its state.
    pub(crate) numbers: HashMap<usize, u32>,
    /// The missed calls of threads that have ended.
    pub(crate) missed: Missed,
    /// The counts for the whole process at the start of the recording.
    pub(crate) nested: u64,
    pub(crate) strangers: u64,
}

/// A record of a thread.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) thread: u32,
    pub(crate) told: Told,
    /// The parent's name, if the parent's code has been unloaded since.
    pub(crate) parent: Option<String>,
}

impl Running {
    pub(crate) fn number(&mut self, key: usize, tid: i32, name: impl Fn() -> String) -> u32 {
        *self.numbers.entry(key).or_insert_with(|| {
            self.threads.push(Thread { tid, name: name() });
            u32::try_from(self.threads.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

impl Missed {
    pub(crate) fn add(&mut self, counts: &Counts) {
        self.dropped += counts.dropped;
        self.deep += counts.deep;
        self.elsewhere += counts.elsewhere;
    }
}
