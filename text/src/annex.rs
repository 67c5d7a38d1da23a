//! Executable memory within reach of code of the host itself.
//!
//! The arena lies in the low 2 GiB; the host's executable and its libraries stand anywhere, and a five-byte call or
//! jump at a site of theirs reaches 2 GiB in both directions. An annex is where such a site leads first: it has room
//! for jumps through an address, which reach everything.

use std::io;

use modload_edit::Addr;
use thiserror::Error;

use crate::arena::{Arena, ArenaError};
use crate::ranges::{Node, Ranges};
use crate::reserve::{self, Access, Reserved};
use crate::room::{self, Room};
use crate::staging::fill_with_traps;
use crate::write::{TextLock, WriteFailed};
use crate::{PAGE, maps};

/// Memory for code near a range of the host's: every byte of it reaches every byte of that range by the 32-bit
/// distance of an instruction, and is reached from there.
///
/// Like the arena's text it is one private anonymous mapping, readable and executable from its first day and never
/// writable. It begins as INT3 and is written by [`crate::fill`] alone: what stands there is compared with `old` as
/// everywhere, and no batch of [`crate::poke`] can have an edit in it, so that the SIGTRAP handler need not know it.
/// A stray call of what was not filled is a SIGTRAP for whoever handled those before us.
///
/// A forked child has a copy of its own, at the same address, which it can fill and drop.
///
/// # Dropping
/// The memory is unmapped, and its addresses are anybody's. Whoever drops an annex knows that no site leads there any
/// more, and has seen that no thread is in it or will return to it: [`crate::traps_in_flight`] and
/// [`modload_threads::frames::each_stack`] say so.
#[derive(Debug)]
pub struct Annex {
    space: Reserved,
    node: &'static Node,
}

/// There is no annex to be had.
#[derive(Debug, Error)]
pub enum AnnexError {
    /// The arena, by whose means it is written, could not be built.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Nothing is asked for, or it shall be near nothing.
    #[error("an annex of {len} bytes near {start}..{end}: neither may be empty")]
    Empty {
        /// First address of what it shall be near to.
        start: Addr,
        /// The one behind the last.
        end: Addr,
        /// Its length in bytes.
        len: u64,
    },
    /// What is mapped cannot be known.
    #[error("/proc/self/maps cannot be read")]
    Maps(#[source] io::Error),
    /// Nothing long enough is free within reach.
    #[error(
        "no room for {len} bytes within 2 GiB of all of {start}..{end}: the longest range that is free there has \
         {longest}; an annex that is asked for earlier, before threads and large allocations, finds more"
    )]
    NoRoom {
        /// First address of what it shall be near to.
        start: Addr,
        /// The one behind the last.
        end: Addr,
        /// How many bytes, in whole pages.
        len: u64,
        /// How many bytes the longest range has that may be taken.
        longest: u64,
    },
    /// The memory cannot be mapped; SELinux without execmem refuses it.
    #[error("mapping {len} bytes of code at {at}")]
    Map {
        /// Where.
        at: Addr,
        /// How many bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory cannot be filled with INT3.
    #[error("filling {len} bytes of code at {at}")]
    Fill {
        /// Where.
        at: Addr,
        /// How many bytes.
        len: u64,
        /// Why not.
        source: WriteFailed,
    },
}

static ANNEXES: Ranges = Ranges::new();

/// How often the mappings are read when others take what has just been free.
const TRIES: u32 = 8;

impl Annex {
    /// Takes `len` bytes, rounded up to whole pages, near `start..end`: as near as it can be had. The range need not be
    /// code, nor mapped as a whole.
    ///
    /// Nothing that is mapped is replaced, and nothing is put where the heap or a stack would grow.
    ///
    /// # Errors
    /// [`AnnexError`]; nothing stays behind.
    pub fn near(start: Addr, end: Addr, len: u64) -> Result<Annex, AnnexError> {
        Arena::get()?;
        if start >= end || len == 0 {
            return Err(AnnexError::Empty { start, end, len });
        }
        let space = reserve_near(start, end, len.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX))?;
        let (at, len) = (space.start, space.len);
        let mut lock = TextLock::take();
        let mapped = space.map(at, len, Access::ReadExecute).map_err(|source| AnnexError::Map { at, len, source });
        let filled = mapped
            .and_then(|()| fill_with_traps(&mut lock, at, len).map_err(|source| AnnexError::Fill { at, len, source }));
        if let Err(failed) = filled {
            give_back(space);
            return Err(failed);
        }
        Ok(Annex { space, node: ANNEXES.enter(&lock, at, at + len) })
    }

    /// The first address, a multiple of [`PAGE`].
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.space.start
    }

    /// How many bytes, whole pages.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.space.len
    }

    /// Never: there is at least a page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.space.len == 0
    }
}

impl Drop for Annex {
    fn drop(&mut self) {
        // With the lock: no batch that has found it may still be under way.
        let lock = TextLock::take();
        self.node.forget(&lock);
        give_back(self.space);
    }
}

/// Unmaps what nobody uses.
fn give_back(space: Reserved) {
    if let Err(failed) = space.release() {
        // One mapping too many, where it lay side by side with another annex. What stands there stays harmless.
        tracing::error!(at = %space.start, len = space.len, %failed, "an annex stays mapped");
    }
}

/// Reserves the nearest room there is.
fn reserve_near(start: Addr, end: Addr, len: u64) -> Result<Reserved, AnnexError> {
    let mut longest = 0;
    for _ in 0..TRIES {
        let room = room::find(&maps::read().map_err(AnnexError::Maps)?, heap_end(), start, end, len);
        longest = room.longest;
        let Room { places, .. } = room;
        if places.is_empty() {
            break;
        }
        for at in places {
            // What another thread has mapped there meanwhile stays: then the next.
            match reserve::at(at, len) {
                Ok(Some(space)) => return Ok(space),
                Ok(None) => {}
                Err(source) => return Err(AnnexError::Map { at, len, source }),
            }
        }
    }
    Err(AnnexError::NoRoom { start, end, len, longest })
}

/// Where the heap ends: brk(2), which the C library does not pass on as the kernel has it.
fn heap_end() -> Addr {
    // SAFETY: an address below the heap changes nothing; the call brings where the heap ends.
    let end = unsafe { libc::syscall(libc::SYS_brk, 0) };
    Addr::new(end.cast_unsigned())
}

/// The annex that holds an address. Allocates nothing and takes no lock.
pub(crate) fn containing(at: Addr) -> Option<(Addr, Addr)> {
    ANNEXES.containing(at)
}
