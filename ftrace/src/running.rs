//! The recording under way.

use std::collections::HashMap;

use crate::filter::Filter;
use crate::identity::TraceHostId;
use crate::trace::{Missed, RecordedThread};
use crate::trampoline::reader::MissedCounts;
use crate::trampoline::ring::RingRecord;
use crate::trampoline::variants::AfterTracers;

/// The recording under way, as the table knows it.
#[derive(Debug)]
pub(crate) struct RunningRecording {
    pub(crate) host: TraceHostId,
    pub(crate) filter: Filter,
    pub(crate) then: AfterTracers,
    pub(crate) session: u32,
    /// The records that were read from rings and are in no batch yet. Each thread's records are in order.
    pub(crate) pending: Vec<PendingRecord>,
    /// The threads, by their numbers in the recording.
    pub(crate) threads: Vec<RecordedThread>,
    /// The number of each reader's thread, by the address of its state.
    pub(crate) numbers: HashMap<usize, u32>,
    /// The missed calls of threads that have ended.
    pub(crate) missed: Missed,
    /// The counts for the whole process at the start of the recording.
    pub(crate) nested: u64,
    pub(crate) unattached: u64,
}

/// A record of a thread.
#[derive(Debug)]
pub(crate) struct PendingRecord {
    pub(crate) thread: u32,
    pub(crate) record: RingRecord,
    /// The parent's name, if the parent's code has been unloaded since.
    pub(crate) parent: Option<String>,
}

impl RunningRecording {
    pub(crate) fn number(&mut self, key: usize, tid: i32, name: impl Fn() -> String) -> u32 {
        *self.numbers.entry(key).or_insert_with(|| {
            self.threads.push(RecordedThread { tid, name: name() });
            u32::try_from(self.threads.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

impl Missed {
    pub(crate) fn add(&mut self, counts: &MissedCounts) {
        self.dropped += counts.dropped;
        self.deep += counts.deep;
        self.elsewhere += counts.elsewhere;
    }
}
