//! Executable memory within reach of the host's own code.
//!
//! The arena lies in the low 2 GiB; the host's executable and its libraries lie anywhere, and a five-byte call or jump
//! at a site in them reaches 2 GiB in both directions. Such a site leads to an annex first, which has room for jumps
//! through an address, which reach the whole address space.

use std::io;

use modload_edit::Addr;
use thiserror::Error;

use crate::address_space::maps;
use crate::address_space::reserve::{self, MappingAccess, Reserved};
use crate::address_space::room::{self, Room};
use crate::allocation::arena::Arena;
use crate::vocabulary::error::{ArenaError, WriteFailed};
use crate::vocabulary::machine::PAGE;
use crate::writing::int3::fill_with_int3;
use crate::writing::ranges::RangeNode;
use crate::writing::registered::ANNEXES;
use crate::writing::text_lock::TextLock;

/// Memory for code near a range of the host: every byte of it can reach, and be reached from, every byte of that range
/// by the 32-bit distance of an instruction.
///
/// Like the arena's text, an annex is one private anonymous mapping, readable and executable from the start and never
/// writable. An annex begins as INT3, and only [`crate::fill`] writes it. The bytes there are compared with `old`, as
/// in all other text. No batch of [`crate::poke`] can have an edit in an annex, so the SIGTRAP handler need not know
/// annexes. A stray call to unfilled bytes raises a SIGTRAP, which goes to the handler that was installed before this
/// crate's.
///
/// A forked child has a copy of its own, at the same address, which the child can fill and drop.
///
/// # Dropping
/// Dropping an annex unmaps its memory, and other mappings may take its addresses. The caller must know that no site
/// leads there any more, and must have seen that no thread is in the annex or will return to it:
/// [`crate::traps_in_flight`] and [`modload_threads::frames::each_stack`] show that.
#[derive(Debug)]
pub struct Annex {
    space: Reserved,
    registered: &'static RangeNode,
}

/// An annex cannot be created.
#[derive(Debug, Error)]
pub enum AnnexError {
    /// The arena could not be created. Annex memory is written through it.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The length is 0, or the range to be near to is empty.
    #[error(
        "an annex of {len} bytes near {start}..{end} cannot be created: neither the annex nor the range may be empty"
    )]
    Empty {
        /// The first address of the range to be near to.
        start: Addr,
        /// The address behind that range.
        end: Addr,
        /// The length in bytes.
        len: u64,
    },
    /// The mappings of the process cannot be read.
    #[error("/proc/self/maps cannot be read; /proc must be mounted and permitted")]
    Maps(#[source] io::Error),
    /// No free range within reach is long enough.
    #[error(
        "no room for {len} bytes within 2 GiB of all of {start}..{end}: the longest free range there has {longest} \
         bytes; create the annex earlier, before threads and large allocations"
    )]
    NoRoom {
        /// The first address of the range to be near to.
        start: Addr,
        /// The address behind that range.
        end: Addr,
        /// The number of bytes, in whole pages.
        len: u64,
        /// The number of bytes of the longest free range.
        longest: u64,
    },
    /// The memory cannot be mapped; SELinux without execmem refuses it.
    #[error(
        "{len} bytes of code cannot be mapped at {at}; the system must permit executable memory (SELinux: execmem)"
    )]
    Map {
        /// The address.
        at: Addr,
        /// The number of bytes.
        len: u64,
        /// The kernel's error.
        source: io::Error,
    },
    /// The memory cannot be filled with INT3.
    #[error("{len} bytes of code at {at} cannot be filled with INT3")]
    Fill {
        /// The address.
        at: Addr,
        /// The number of bytes.
        len: u64,
        /// The failed write.
        source: WriteFailed,
    },
}

/// The number of times that the mappings are read, if other threads map ranges that have just been free.
const TRIES: u32 = 8;

impl Annex {
    /// Maps `len` bytes, rounded up to whole pages, as near to `start..end` as possible. The range need not be code,
    /// nor mapped as a whole.
    ///
    /// The annex replaces no mapping, and is not placed where the heap or a stack would grow.
    ///
    /// # Errors
    /// [`AnnexError`]; then nothing stays mapped.
    pub fn near(start: Addr, end: Addr, len: u64) -> Result<Annex, AnnexError> {
        Arena::get()?;
        if start >= end || len == 0 {
            return Err(AnnexError::Empty { start, end, len });
        }
        let space = reserve_near(start, end, len.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX))?;
        let (at, len) = (space.start, space.len);
        let mut lock = TextLock::take();
        let mapped =
            space.map(at, len, MappingAccess::ReadExecute).map_err(|source| AnnexError::Map { at, len, source });
        let filled = mapped
            .and_then(|()| fill_with_int3(&mut lock, at, len).map_err(|source| AnnexError::Fill { at, len, source }));
        if let Err(failed) = filled {
            unmap(space);
            return Err(failed);
        }
        Ok(Annex { space, registered: ANNEXES.add(&lock, at, at + len) })
    }

    /// Returns the first address, a multiple of [`PAGE`].
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.space.start
    }

    /// Returns the number of bytes, in whole pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.space.len
    }

    /// Returns `false`: an annex has at least a page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.space.len == 0
    }
}

impl Drop for Annex {
    fn drop(&mut self) {
        // Under the lock, because a batch that has found the annex may still be in progress.
        let lock = TextLock::take();
        self.registered.remove(&lock);
        unmap(self.space);
    }
}

/// Unmaps a range that is no longer in use.
fn unmap(space: Reserved) {
    if let Err(failed) = space.release() {
        // Next to another annex, unmapping splits a mapping, which may exceed the kernel's limit. The memory that stays
        // is harmless.
        tracing::error!(at = %space.start, len = space.len, %failed, "an annex stays mapped");
    }
}

/// Reserves the nearest free range.
fn reserve_near(start: Addr, end: Addr, len: u64) -> Result<Reserved, AnnexError> {
    let mut longest = 0;
    for _ in 0..TRIES {
        let room = room::find_room(&maps::read().map_err(AnnexError::Maps)?, heap_end(), start, end, len);
        longest = room.longest;
        let Room { places, .. } = room;
        if places.is_empty() {
            break;
        }
        for at in places {
            // A range that another thread has mapped meanwhile is left alone, and the next one is tried.
            match reserve::at(at, len) {
                Ok(Some(space)) => return Ok(space),
                Ok(None) => {}
                Err(source) => return Err(AnnexError::Map { at, len, source }),
            }
        }
    }
    Err(AnnexError::NoRoom { start, end, len, longest })
}

/// Returns the end of the heap by brk(2); the C library does not pass on the kernel's result.
fn heap_end() -> Addr {
    // SAFETY: an address below the heap changes nothing; the call returns the end of the heap.
    let end = unsafe { libc::syscall(libc::SYS_brk, 0) };
    Addr::new(end.cast_unsigned())
}
