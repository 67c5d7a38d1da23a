//! The ranges that a batch may write, and the comparison of the bytes there.

use std::sync::atomic::{AtomicU8, Ordering};

use modload_edit::{Addr, Edit, wide};

use crate::address_space::pointer::pointer;
use crate::allocation::arena::Arena;
use crate::allocation::owners;
use crate::vocabulary::class::Class;
use crate::vocabulary::poke_error::PokeError;
use crate::writing::registered;
use crate::writing::text_lock::TextLock;

/// The range that the last edit lay in; the next edit mostly lies in it, too.
pub(crate) struct Region {
    start: Addr,
    end: Addr,
    find: fn(Addr) -> Option<(Addr, Addr)>,
}

/// Returns the range of published text, or of registered text of the host, that holds an address.
fn text(at: Addr) -> Option<(Addr, Addr)> {
    owners::published(at).or_else(|| registered::host_text_containing(at))
}

/// Returns the range that holds an address: as [`text`], an annex, or data of any kind.
fn whatever_is_filled(at: Addr) -> Option<(Addr, Addr)> {
    let data = || {
        let (class, rest) = Arena::existing()?.touched_from(at)?;
        (class != Class::Text).then_some((at, at + rest))
    };
    text(at).or_else(|| registered::annex_containing(at)).or_else(data)
}

/// Reads `len` bytes one by one: variables may be written meanwhile by a module's code, of which no stronger access can
/// be assumed. The caller has checked that all the bytes are mapped and readable.
fn bytes(at: Addr, len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |offset| {
        // SAFETY: mapped and readable as the caller has checked: published or registered text, an annex or data.
        let byte = unsafe { AtomicU8::from_ptr(pointer(at + wide(offset))) };
        byte.load(Ordering::Relaxed)
    })
}

/// Returns the bytes of a range that [`crate::fill`] may write; `None` if it may not write all of the range.
#[must_use]
pub fn filled(_lock: &TextLock<'_>, at: Addr, len: usize) -> Option<Vec<u8>> {
    let (start, end) = whatever_is_filled(at)?;
    let holds = start <= at && at < end && wide(len) <= (end - at).cast_unsigned();
    holds.then(|| bytes(at, len).collect())
}

impl Region {
    /// Returns a region of the ranges that [`crate::poke`] may write.
    pub(crate) fn poked() -> Region {
        Region { start: Addr::NULL, end: Addr::NULL, find: text }
    }

    /// Returns a region of the ranges that [`crate::fill`] may write.
    pub(crate) fn filled() -> Region {
        Region { start: Addr::NULL, end: Addr::NULL, find: whatever_is_filled }
    }

    /// Checks that the edit's bytes lie in a range that may be written, and that the old bytes are there.
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
