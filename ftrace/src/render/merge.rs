//! Sorts the records of several threads by time. The order of each thread's own records is kept, even if their times
//! disagree.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use crate::trace::Record;

/// The records that wait until no older record can follow.
#[derive(Default, Debug)]
pub(super) struct Merge {
    /// The records by thread, in the order in which the thread made them. No list is empty after [`Merge::push`].
    waiting: BTreeMap<u32, VecDeque<Record>>,
    /// The time of the oldest record of each thread that has records, and the thread.
    oldest: BinaryHeap<Reverse<(u64, u32)>>,
    /// Records up to this time are final: a drain that began after they were made has arrived.
    settled: u64,
    /// The time of the youngest record so far.
    youngest: u64,
}

impl Merge {
    /// Adds the records of a drain. Records that it does not contain were made after the previous drain. So all records
    /// up to the youngest of the previous drain are known now.
    pub(super) fn push(&mut self, records: Vec<Record>) {
        self.settled = self.youngest;
        self.waiting.retain(|_, records| !records.is_empty());
        for record in records {
            self.youngest = self.youngest.max(record.at);
            let waiting = self.waiting.entry(record.thread).or_default();
            if waiting.is_empty() {
                self.oldest.push(Reverse((record.at, record.thread)));
            }
            waiting.push_back(record);
        }
    }

    /// Marks the end: no more records follow.
    pub(super) fn close(&mut self) {
        self.settled = u64::MAX;
    }

    /// Returns the next final record, and the same thread's next record if it is known already.
    pub(super) fn next(&mut self) -> Option<(Record, Option<&Record>)> {
        let Reverse((at, thread)) = *self.oldest.peek()?;
        if at > self.settled {
            return None;
        }
        self.oldest.pop();
        let waiting = self.waiting.get_mut(&thread)?;
        let record = waiting.pop_front()?;
        if let Some(next) = waiting.front() {
            self.oldest.push(Reverse((next.at, thread)));
        }
        Some((record, waiting.front()))
    }
}
