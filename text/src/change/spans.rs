//! Writes the edits of a batch: edits that lie close together are one write of their span.

use modload_edit::{Addr, Edit, EditSet, index, wide};

use crate::address_space::pointer::pointer;
use crate::allocation::arena;
use crate::vocabulary::error::WriteFailed;
use crate::vocabulary::machine::INT3;
use crate::writing::registered;
use crate::writing::text_lock::{CHUNK, TextLock};

/// The bytes that a pass over a batch writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pass {
    /// INT3 at each first byte.
    Traps,
    /// All bytes except for the first ones.
    Tails,
    /// The first bytes.
    Firsts,
    /// Every byte.
    Whole,
}

/// The version of the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// The bytes before the batch.
    Old,
    /// The bytes after the batch.
    New,
}

/// The edits that share a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grouping {
    /// Edits with at most [`NEAR`] bytes between them: the bytes between are written unchanged.
    Spans,
    /// No edits: a debugger may set and remove breakpoints between them.
    Alone,
}

/// The greatest number of bytes between two edits for which copying them is cheaper than a separate write.
const NEAR: u64 = 4096;

impl Pass {
    fn part<'e>(self, edit: &Edit<'e>, side: Side) -> (Addr, &'e [u8]) {
        let bytes = match side {
            Side::Old => edit.old,
            Side::New => edit.new,
        };
        match self {
            Pass::Traps => (edit.at, &[INT3]),
            Pass::Tails => (edit.at + 1, &bytes[1..]),
            Pass::Firsts => (edit.at, &bytes[..1]),
            Pass::Whole => (edit.at, bytes),
        }
    }
}

/// Writes one pass. Allocates nothing once the lock's buffer has been reserved. Returns the number of writes.
pub(crate) fn write(
    lock: &mut TextLock<'_>,
    edits: &EditSet,
    pass: Pass,
    side: Side,
    grouping: Grouping,
) -> Result<u32, WriteFailed> {
    let mut buffer = lock.take_buffer();
    let mut span = Span { lock, buffer: &mut buffer, start: Addr::NULL, writes: 0 };
    let written = edits.iter().try_for_each(|edit| {
        let (at, bytes) = pass.part(&edit, side);
        if bytes.is_empty() { Ok(()) } else { span.take(at, bytes, grouping) }
    });
    let written = written.and_then(|()| span.flush());
    let writes = span.writes;
    lock.give_buffer(buffer);
    written.map(|()| writes)
}

/// The bytes of the next write.
struct Span<'s, 'l> {
    lock: &'s mut TextLock<'l>,
    buffer: &'s mut Vec<u8>,
    /// The address of the buffer's first byte.
    start: Addr,
    writes: u32,
}

impl Span<'_, '_> {
    fn take(&mut self, at: Addr, bytes: &[u8], grouping: Grouping) -> Result<(), WriteFailed> {
        let end = self.start + wide(self.buffer.len());
        // Edits are sorted, and do not overlap.
        let gap = (at - end).cast_unsigned();
        let joins = grouping == Grouping::Spans
            && !self.buffer.is_empty()
            && gap <= NEAR
            && self.buffer.len() + index(gap) + bytes.len() <= CHUNK
            && same_region(end, at);
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
fn same_region(one: Addr, other: Addr) -> bool {
    let hosts = || registered::host_text_containing(one).or_else(|| registered::annex_containing(one));
    arena::text_contains(one) && arena::text_contains(other)
        || hosts().is_some_and(|(start, end)| (start..end).contains(&other))
}
