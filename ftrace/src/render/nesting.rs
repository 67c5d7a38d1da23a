//! The functions that threads are in: each thread's entries that have no exit yet.

use std::collections::BTreeMap;

use crate::trace::Record;

/// A function that was entered.
#[derive(Debug)]
pub(super) struct OpenCall {
    pub(super) function: u32,
    /// The time of the entry in nanoseconds.
    pub(super) entered: u64,
    /// The time spent in traced functions that this function called, in nanoseconds.
    pub(super) callees: u64,
}

/// The stacks of all threads that are in a traced function.
#[derive(Default, Debug)]
pub(super) struct Nesting {
    threads: BTreeMap<u32, Vec<OpenCall>>,
}

impl Nesting {
    pub(super) fn depth(&self, thread: u32) -> usize {
        self.threads.get(&thread).map_or(0, Vec::len)
    }

    /// Returns the function that this thread entered last.
    pub(super) fn innermost(&mut self, thread: u32) -> Option<&mut OpenCall> {
        self.threads.get_mut(&thread)?.last_mut()
    }

    pub(super) fn enter(&mut self, record: &Record) {
        let frame = OpenCall { function: record.function, entered: record.at, callees: 0 };
        self.threads.entry(record.thread).or_default().push(frame);
    }

    /// Returns the number of frames that end with this exit. In a valid recording the number is 1, because entries and
    /// exits are pairs. Records from another source can be invalid: an exit also ends the frames above its own frame, and an
    /// exit without an entry ends no frame.
    pub(super) fn ending(&self, record: &Record) -> usize {
        let frames = self.threads.get(&record.thread).map_or(&[][..], Vec::as_slice);
        frames.iter().rev().position(|frame| frame.function == record.function).map_or(0, |above| above + 1)
    }

    /// Removes the function that this thread entered last.
    pub(super) fn leave(&mut self, thread: u32) -> Option<OpenCall> {
        let frames = self.threads.get_mut(&thread)?;
        let frame = frames.pop();
        if frames.is_empty() {
            self.threads.remove(&thread);
        }
        frame
    }

    /// Returns the threads that are in a traced function.
    pub(super) fn threads(&self) -> Vec<u32> {
        self.threads.keys().copied().collect()
    }
}
