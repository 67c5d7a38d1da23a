//! Where a batch may write, and what is there before.

use std::sync::atomic::{AtomicU8, Ordering};

use modload_edit::{Addr, Edit, wide};

use crate::arena::{Arena, Class};
use crate::poke::PokeError;
use crate::reserve::pointer;
use crate::write::TextLock;
use crate::{annex, host_text, owners};

/// The range that the last edit lay in; the next one mostly does, too.
pub(crate) struct Region {
    start: Addr,
    end: Addr,
    find: fn(Addr) -> Option<(Addr, Addr)>,
}

/// Text that is published, and text of the host's that is registered.
fn text(at: Addr) -> Option<(Addr, Addr)> {
    owners::published(at).or_else(|| host_text::containing(at))
}

/// The same, annexes, and data of all kinds.
fn whatever_is_filled(at: Addr) -> Option<(Addr, Addr)> {
    let data = || {
        let (class, rest) = Arena::existing()?.touched_from(at)?;
        (class != Class::Text).then_some((at, at + rest))
    };
    text(at).or_else(|| annex::containing(at)).or_else(data)
}

/// `len` bytes, read one by one: variables may be written meanwhile, by code of which nothing better can be said. That
/// all of them are mapped and readable, the caller has seen.
fn bytes(at: Addr, len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |offset| {
        // SAFETY: see above; published or registered text, an annex or data.
        let byte = unsafe { AtomicU8::from_ptr(pointer(at + wide(offset))) };
        byte.load(Ordering::Relaxed)
    })
}

/// What stands at a place that [`crate::fill`] may write; `None` if it is none, or only a part of it is.
#[must_use]
pub fn filled(_lock: &TextLock<'_>, at: Addr, len: usize) -> Option<Vec<u8>> {
    let (start, end) = whatever_is_filled(at)?;
    let holds = start <= at && at < end && wide(len) <= (end - at).cast_unsigned();
    holds.then(|| bytes(at, len).collect())
}

impl Region {
    /// Where [`crate::poke`] may write.
    pub(crate) fn poked() -> Region {
        Region { start: Addr::NULL, end: Addr::NULL, find: text }
    }

    /// Where [`crate::fill`] may write.
    pub(crate) fn filled() -> Region {
        Region { start: Addr::NULL, end: Addr::NULL, find: whatever_is_filled }
    }

    /// Looks whether the edit's bytes lie where they may, and whether the old ones are there.
    pub(crate) fn compare(&mut self, edit: &Edit<'_>) -> Result<(), PokeError> {
        let &Edit { at, old, new, why } = edit;
        if !self.holds(edit) {
            (self.start, self.end) = (self.find)(at).unwrap_or_default();
            if !self.holds(edit) {
                return Err(PokeError::NotText { at, len: new.len(), why });
            }
        }
        if bytes(at, old.len()).eq(old.iter().copied()) {
            return Ok(());
        }
        let found = bytes(at, old.len()).collect();
        Err(PokeError::Mismatch { at, expected: old.to_vec(), found, why })
    }

    fn holds(&self, edit: &Edit<'_>) -> bool {
        self.start <= edit.at && edit.at < self.end && wide(edit.new.len()) <= (self.end - edit.at).cast_unsigned()
    }
}
