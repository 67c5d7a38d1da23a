//! Text of the host itself that may be poked: ranges that the embedder has registered.

use std::io;

use modload_edit::Addr;
use thiserror::Error;

use crate::address_space::maps::{self, Mapping};
use crate::writing::ranges::RangeNode;
use crate::writing::registered::HOST_TEXTS;
use crate::writing::text_lock::TextLock;

/// A range of the host's own code, a part of its executable or of a library, that may be poked. Dropping it unregisters
/// the range; its code stays unchanged.
#[derive(Debug)]
pub struct HostText {
    registered: &'static RangeNode,
}

/// The range cannot be registered.
#[derive(Debug, Error)]
pub enum HostTextError {
    /// Not all of the range is mapped as code.
    #[error("{start}..{end} is not within one private mapping that can be read and executed and not written")]
    NotText {
        /// The first address of the range.
        start: Addr,
        /// The address behind the range.
        end: Addr,
    },
    /// The mappings of the process cannot be read.
    #[error("/proc/self/maps cannot be read; /proc must be mounted and permitted")]
    Maps(#[source] io::Error),
}

impl HostText {
    /// Registers a range.
    ///
    /// # Errors
    /// [`HostTextError`]: the range is not code, or may be written.
    ///
    /// # Safety
    /// The code stays mapped there until this value is dropped, and only [`crate::poke`] changes it meanwhile. The code
    /// that is poked into the range must be right for the code around it.
    pub unsafe fn register(start: Addr, end: Addr) -> Result<HostText, HostTextError> {
        let maps = maps::read().map_err(HostTextError::Maps)?;
        let covers = |map: &Mapping| map.access == *b"r-xp" && map.start <= start && end <= map.end && start < end;
        if !maps.iter().any(covers) {
            return Err(HostTextError::NotText { start, end });
        }
        Ok(HostText { registered: HOST_TEXTS.add(&TextLock::take(), start, end) })
    }

    /// Returns the first address and the address behind the range.
    #[must_use]
    pub fn range(&self) -> (Addr, Addr) {
        self.registered.range()
    }
}

impl Drop for HostText {
    fn drop(&mut self) {
        // Under the lock, because a batch that has found the range may still be in progress.
        self.registered.remove(&TextLock::take());
    }
}
