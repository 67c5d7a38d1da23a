//! Text and read-only data on their way to their place.

use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};
use modload_edit::{Addr, index, wide};
use thiserror::Error;

use crate::arena::{Arena, Class, Extent, OutOfMemory};
use crate::owners::{self, Describe, Phase};
use crate::write::{TextLock, WriteFailed};
use crate::{INT3, PAGE, place, sync};

/// How many staging buffers are kept for the next load, and how large each may be.
const KEEP: usize = 8;
const KEEP_LEN: usize = 4 << 20;

/// Text or read-only data of a module that is being loaded: writable, not executable, seen by nobody else, addressed
/// as if it stood at [`Staged::addr`] already. Dropping it leaves no trace.
#[derive(Debug)]
pub struct Staged {
    buffer: Buffer,
    extent: Extent,
}

/// Text or read-only data at its place, under a protection that never changes. Dropping it unpublishes it: text is
/// filled with INT3 and all cores are synchronised before the range can be used again.
#[derive(Debug)]
pub struct Published {
    /// `None` once the range is beyond saving and must never be used again.
    extent: Option<Extent>,
}

/// A staging buffer; goes back to the arena when dropped.
#[derive(Debug)]
struct Buffer {
    arena: &'static Arena,
    /// `None` only when dropped.
    map: Option<MmapMut>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(map) = self.map.take() else { return };
        let mut books = self.arena.books();
        if map.len() <= KEEP_LEN && books.buffers.len() < KEEP {
            books.buffers.push(map);
        }
    }
}

/// Text or read-only data could not be brought to its place. Nothing of it can be reached.
#[derive(Debug, Error)]
#[error("publishing {len} bytes of {class} at {at}")]
pub struct PublishFailed {
    /// What it was.
    pub class: Class,
    /// Where it should have stood.
    pub at: Addr,
    /// How many bytes.
    pub len: u64,
    /// Why not.
    pub source: WriteFailed,
}

impl Arena {
    /// Takes `len` bytes of text (`executable`) and a buffer to stage them in.
    ///
    /// The buffer's contents are anything; whoever stages writes every byte.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn stage_text(&'static self, len: u64, align: u64) -> Result<Staged, OutOfMemory> {
        self.stage(Class::Text, len, align)
    }

    /// Takes `len` bytes of read-only data and a buffer to stage them in, as [`Arena::stage_text`] does for text.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn stage_read_only(&'static self, len: u64, align: u64) -> Result<Staged, OutOfMemory> {
        self.stage(Class::ReadOnly, len, align)
    }

    fn stage(&'static self, class: Class, len: u64, align: u64) -> Result<Staged, OutOfMemory> {
        let extent = self.take(class, len, align)?;
        let wanted = index(len);
        let kept = {
            let mut books = self.books();
            let fits = books.buffers.iter().position(|buffer| buffer.len() >= wanted);
            fits.map(|at| books.buffers.swap_remove(at))
        };
        let map = match kept {
            Some(map) => map,
            None => {
                let len = wanted.next_power_of_two().max(index(16 * PAGE));
                MmapOptions::new()
                    .len(len)
                    .populate()
                    .map_anon()
                    .map_err(|source| OutOfMemory::Staging { len, source })?
            }
        };
        Ok(Staged { buffer: Buffer { arena: self, map: Some(map) }, extent })
    }
}

impl Staged {
    /// Where the first byte will stand.
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.extent.start
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        index(self.extent.len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extent.len == 0
    }

    /// The staged bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = self.len();
        self.buffer.map.as_ref().map_or(&[], |buffer| &buffer[..len])
    }

    /// The staged bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len();
        self.buffer.map.as_mut().map_or(&mut [], |buffer| &mut buffer[..len])
    }

    /// Names the module that calls into this text are reported for, from now until the range is used for another.
    pub fn owner(&mut self, describe: Arc<dyn Describe>) {
        owners::set(self.extent.start, self.extent.start + self.extent.len, describe);
    }

    /// Brings the bytes to their place with one write: Linux's `module_enable_ro`.
    ///
    /// # Errors
    /// [`PublishFailed`]; the range has been given back.
    pub fn publish(self, lock: &mut TextLock<'_>) -> Result<Published, PublishFailed> {
        let Extent { class, start, len, .. } = self.extent;
        if let Err(source) = lock.write(start, self.bytes()) {
            // What was half written may not stay there for the next one.
            if class == Class::Text && fill_with_traps(lock, start, len).is_err() {
                std::mem::forget(self.extent);
            }
            return Err(PublishFailed { class, at: start, len, source });
        }
        if class == Class::Text {
            owners::set_phase(start, Phase::Published);
        }
        Ok(Published { extent: Some(self.extent) })
    }
}

impl Published {
    /// Copies bytes out. `None` if they do not all lie in this range.
    #[must_use]
    pub fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        place::read(self.extent.as_ref()?, at, len)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let Some(extent) = self.extent.take() else { return };
        if extent.class != Class::Text {
            return;
        }
        // Before the traps stand there: whoever meets one is told why.
        owners::set_phase(extent.start, Phase::Gone);
        let filled = fill_with_traps(&mut TextLock::take(), extent.start, extent.len);
        if let Err(failed) = filled {
            tracing::error!(at = %extent.start, len = extent.len, %failed, "text cannot be taken back and is leaked");
            std::mem::forget(extent);
        }
    }
}

static TRAPS: [u8; 0x1_0000] = [INT3; 0x1_0000];

/// Fills text with INT3 and has every core notice.
pub(crate) fn fill_with_traps(lock: &mut TextLock<'_>, at: Addr, len: u64) -> Result<(), WriteFailed> {
    let mut done = 0;
    while done < len {
        let part = &TRAPS[..TRAPS.len().min(index(len - done))];
        lock.write(at + done, part)?;
        done += wide(part.len());
    }
    sync::all_cores().map_err(|source| WriteFailed::Sync { source })
}
