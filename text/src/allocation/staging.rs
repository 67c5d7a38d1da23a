//! Text and read-only data before and after publishing.

use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};
use modload_edit::{Addr, index};

use crate::allocation::arena::{Arena, Extent};
use crate::allocation::owners::{self, Describe, TextState};
use crate::vocabulary::class::Class;
use crate::vocabulary::error::{OutOfMemory, PublishFailed};
use crate::vocabulary::machine::PAGE;
use crate::writing::int3::fill_with_int3;
use crate::writing::text_lock::TextLock;

/// The number of staging buffers that are kept for later loads, and the greatest size of each.
const MAX_KEPT_BUFFERS: usize = 8;
const MAX_KEPT_LEN: usize = 4 << 20;

/// Text or read-only data of a module that is being loaded: writable, not executable, visible to no other code, with
/// the addresses of its final place at [`Staged::addr`]. Dropping this value leaves no trace.
#[derive(Debug)]
pub struct Staged {
    buffer: StagingBuffer,
    extent: Extent,
}

/// Text or read-only data at its final place, under a protection that never changes. Dropping this value unpublishes
/// it: text is filled with INT3 and all cores are synchronised before the range can be used again.
#[derive(Debug)]
pub struct Published {
    /// `None` once the range could not be cleaned and must never be used again.
    extent: Option<Extent>,
}

/// A staging buffer; returned to the arena on drop.
#[derive(Debug)]
struct StagingBuffer {
    arena: &'static Arena,
    /// `None` only during the drop.
    map: Option<MmapMut>,
}

impl Drop for StagingBuffer {
    fn drop(&mut self) {
        let Some(map) = self.map.take() else { return };
        let mut state = self.arena.lock_state();
        if map.len() <= MAX_KEPT_LEN && state.buffers.len() < MAX_KEPT_BUFFERS {
            state.buffers.push(map);
        }
    }
}

impl Arena {
    /// Takes `len` bytes of text and a buffer to stage them in.
    ///
    /// The buffer's contents are arbitrary; the caller must write every byte.
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
            let mut state = self.lock_state();
            let fits = state.buffers.iter().position(|buffer| buffer.len() >= wanted);
            fits.map(|at| state.buffers.swap_remove(at))
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
        Ok(Staged { buffer: StagingBuffer { arena: self, map: Some(map) }, extent })
    }
}

impl Staged {
    /// Returns the final address of the first byte.
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.extent.start
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        index(self.extent.len)
    }

    /// Returns whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extent.len == 0
    }

    /// Returns the staged bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = self.len();
        self.buffer.map.as_ref().map_or(&[], |buffer| &buffer[..len])
    }

    /// Returns the staged bytes for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len();
        self.buffer.map.as_mut().map_or(&mut [], |buffer| &mut buffer[..len])
    }

    /// Sets the module by whose name calls into this text are reported, from now until the range is taken again.
    pub fn set_owner(&mut self, describe: Arc<dyn Describe>) {
        owners::set_owner(self.extent.start, self.extent.start + self.extent.len, describe);
    }

    /// Copies the bytes to their final place with one write: Linux's `module_enable_ro`.
    ///
    /// # Errors
    /// [`PublishFailed`]; the range has been freed.
    pub fn publish(self, lock: &mut TextLock<'_>) -> Result<Published, PublishFailed> {
        let Extent { class, start, len, .. } = self.extent;
        if let Err(source) = lock.write(start, self.bytes()) {
            // A half-written text must not stay for the range's next user.
            if class == Class::Text && fill_with_int3(lock, start, len).is_err() {
                std::mem::forget(self.extent);
            }
            return Err(PublishFailed { class, at: start, len, source });
        }
        if class == Class::Text {
            owners::set_state(start, TextState::Published);
        }
        Ok(Published { extent: Some(self.extent) })
    }
}

impl Published {
    /// Copies bytes out. Returns `None` if not all of them lie in this range.
    #[must_use]
    pub fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        self.extent.as_ref()?.read(at, len)
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let Some(extent) = self.extent.take() else { return };
        if extent.class != Class::Text {
            return;
        }
        // The state is set before the traps are written, so that the report of a trap gives the right reason.
        owners::set_state(extent.start, TextState::Freed);
        let filled = fill_with_int3(&mut TextLock::take(), extent.start, extent.len);
        if let Err(failed) = filled {
            let (at, len) = (extent.start, extent.len);
            tracing::error!(%at, len, %failed, "freed text cannot be filled with INT3 and is leaked");
            std::mem::forget(extent);
        }
    }
}
