//! Who is in which function: each thread's entries that have no exit yet.

use std::collections::BTreeMap;

use crate::trace::Record;

/// A function that was entered.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) function: u32,
    /// When, in nanoseconds.
    pub(super) entered: u64,
    /// How long traced functions took that it called, in nanoseconds.
    pub(super) callees: u64,
}

/// The stacks of all threads that are in any traced function.
#[derive(Default, Debug)]
pub(super) struct Nesting {
    threads: BTreeMap<u32, Vec<Frame>>,
}

impl Nesting {
    pub(super) fn depth(&self, thread: u32) -> usize {
        self.threads.get(&thread).map_or(0, Vec::len)
    }

    /// The function that this thread entered last.
    pub(super) fn innermost(&mut self, thread: u32) -> Option<&mut Frame> {
        self.threads.get_mut(&thread)?.last_mut()
    }

    pub(super) fn enter(&mut self, record: &Record) {
        let frame = Frame { function: record.function, entered: record.at, callees: 0 };
        self.threads.entry(record.thread).or_default().push(frame);
    }

    /// How many frames end with this exit. It is one: recordings keep entries and exits in pairs. But whoever sends us others
    /// must not confuse all that follows: frames above the one that is left end with it, and an exit without an entry ends none.
    pub(super) fn ending(&self, record: &Record) -> usize {
        let frames = self.threads.get(&record.thread).map_or(&[][..], Vec::as_slice);
        frames.iter().rev().position(|frame| frame.function == record.function).map_or(0, |above| above + 1)
    }

    /// The function that this thread entered last is left.
    pub(super) fn leave(&mut self, thread: u32) -> Option<Frame> {
        let frames = self.threads.get_mut(&thread)?;
        let frame = frames.pop();
        if frames.is_empty() {
            self.threads.remove(&thread);
        }
        frame
    }

    /// The threads that are in any traced function.
    pub(super) fn threads(&self) -> Vec<u32> {
        self.threads.keys().copied().collect()
    }
}
