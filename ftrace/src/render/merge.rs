//! Records of several threads, brought into one order by their times. A thread's own order stays whatever its times say.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use crate::trace::Record;

/// Records that wait until nothing older can come any more.
#[derive(Default, Debug)]
pub(super) struct Merge {
    /// By thread: in the order in which it made them. None is empty after [`Merge::push`].
    waiting: BTreeMap<u32, VecDeque<Record>>,
    /// The oldest of each thread that has any: its time, and the thread.
    oldest: BinaryHeap<Reverse<(u64, u32)>>,
    /// Records up to this time can be told: a drain that began after they were made has come.
    settled: u64,
    /// The time of the youngest record so far.
    youngest: u64,
}

impl Merge {
    /// What a drain has found. Whatever is not in it was made after the drain before it, so all up to that one's youngest
    /// record is known now.
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

    /// Nothing comes any more.
    pub(super) fn close(&mut self) {
        self.settled = u64::MAX;
    }

    /// The next record that can be told, and the same thread's next one if that is here already.
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
