//! Writes the edits of a batch: edits that lie close together are one write of their span.

use modload_edit::{Addr, Edit, EditSet, index, wide};
use modload_threads::{Tid, status};

use crate::address_space::pointer::pointer;
use crate::allocation::arena;
use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::machine::INT3;
use crate::writing::registered;
use crate::writing::text_lock::{MAX_WRITE, TextLock};

/// The bytes that a pass over a batch writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BatchPass {
    /// INT3 at each first byte.
    Traps,
    /// All bytes except for the first ones.
    LaterBytes,
    /// The first bytes.
    FirstBytes,
    /// Every byte.
    WholeEdits,
}

/// The version of the bytes that a pass writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EditVersion {
    /// The bytes before the batch.
    Old,
    /// The bytes after the batch.
    New,
}

/// The edits that share a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grouping {
    /// Edits with at most [`MAX_GAP`] bytes between them: the bytes between are written unchanged.
    Spans,
    /// Each edit is a write of its own: a debugger may set and remove breakpoints between two edits.
    SingleEdits,
}

impl Grouping {
    /// Returns the grouping for text that a debugger may change at the same time. With a debugger, a span could restore a breakpoint
    /// that the debugger has removed, because a span writes a stale copy of the bytes between two edits.
    pub(crate) fn for_this_process() -> Grouping {
        let traced = status(Tid::current()).ok().flatten().is_some_and(|status| status.tracer != 0);
        if traced { Grouping::SingleEdits } else { Grouping::Spans }
    }
}

/// The greatest number of bytes between two edits for which copying them is cheaper than a separate write.
const MAX_GAP: u64 = 4096;

impl BatchPass {
    /// Returns the bytes of an edit that this pass writes, and their address.
    fn bytes_of<'e>(self, edit: &Edit<'e>, version: EditVersion) -> (Addr, &'e [u8]) {
        let bytes = match version {
            EditVersion::Old => edit.old,
            EditVersion::New => edit.new,
        };
        match self {
            BatchPass::Traps => (edit.at, &[INT3]),
            BatchPass::LaterBytes => (edit.at + 1, &bytes[1..]),
            BatchPass::FirstBytes => (edit.at, &bytes[..1]),
            BatchPass::WholeEdits => (edit.at, bytes),
        }
    }
}

/// Writes one pass. Allocates nothing once the lock's buffer has been reserved. Returns the number of writes.
pub(crate) fn write_pass(
    lock: &mut TextLock<'_>,
    edits: &EditSet,
    pass: BatchPass,
    version: EditVersion,
    grouping: Grouping,
) -> Result<u32, WriteFailed> {
    let mut buffer = lock.take_buffer();
    let mut pending = PendingWrite { lock, buffer: &mut buffer, start: Addr::NULL, writes: 0 };
    let written = edits.iter().try_for_each(|edit| {
        let (at, bytes) = pass.bytes_of(&edit, version);
        if bytes.is_empty() { Ok(()) } else { pending.add(at, bytes, grouping) }
    });
    let written = written.and_then(|()| pending.flush());
    let writes = pending.writes;
    lock.return_buffer(buffer);
    written.map(|()| writes)
}

/// The bytes of the next write.
struct PendingWrite<'s, 'l> {
    lock: &'s mut TextLock<'l>,
    buffer: &'s mut Vec<u8>,
    /// The address of the buffer's first byte.
    start: Addr,
    writes: u32,
}

impl PendingWrite<'_, '_> {
    /// Adds bytes. Writes the earlier bytes first, if the new ones cannot join them.
    fn add(&mut self, at: Addr, bytes: &[u8], grouping: Grouping) -> Result<(), WriteFailed> {
        let end = self.start + wide(self.buffer.len());
        // Edits are sorted, and do not overlap.
        let gap = (at - end).cast_unsigned();
        let joins = grouping == Grouping::Spans
            && !self.buffer.is_empty()
            && gap <= MAX_GAP
            && self.buffer.len() + index(gap) + bytes.len() <= MAX_WRITE
            && in_same_region(end, at);
        if joins {
            // SAFETY: both ends lie in one region of text, which is mapped and readable; only the holder of the lock
            // changes it.
            let between = unsafe { std::slice::from_raw_parts(pointer(end), index(gap)) };
            self.buffer.extend_from_slice(between);
        } else {
            self.flush()?;
            self.start = at;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes the bytes that were added.
    fn flush(&mut self) -> Result<(), WriteFailed> {
        if !self.buffer.is_empty() {
            self.lock.write(self.start, self.buffer)?;
            self.writes += 1;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Returns whether all bytes between two addresses are text that this crate may read and write.
fn in_same_region(first: Addr, second: Addr) -> bool {
    let host_range = || registered::host_text_containing(first).or_else(|| registered::annex_containing(first));
    arena::text_contains(first) && arena::text_contains(second)
        || host_range().is_some_and(|(start, end)| (start..end).contains(&second))
}
