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
pub(crate) struct WritableRange {
    start: Addr,
    end: Addr,
    find: fn(Addr) -> Option<(Addr, Addr)>,
}

/// Returns the range of published text, or of registered text of the host, that holds an address.
fn pokeable_range(at: Addr) -> Option<(Addr, Addr)> {
    owners::published(at).or_else(|| registered::host_text_containing(at))
}

/// Returns the range that holds an address: as [`pokeable_range`], an annex, or data of any kind.
fn fillable_range(at: Addr) -> Option<(Addr, Addr)> {
    let data = || {
        let (class, rest) = Arena::existing()?.touched_from(at)?;
        (class != Class::Text).then_some((at, at + rest))
    };
    pokeable_range(at).or_else(|| registered::annex_containing(at)).or_else(data)
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
pub fn read_fillable(_lock: &TextLock<'_>, at: Addr, len: usize) -> Option<Vec<u8>> {
    let (start, end) = fillable_range(at)?;
    let is_within = start <= at && at < end && wide(len) <= (end - at).cast_unsigned();
    is_within.then(|| bytes(at, len).collect())
}

impl WritableRange {
    /// Starts without a range. Finds the ranges that [`crate::poke`] may write.
    pub(crate) fn of_poke() -> WritableRange {
        WritableRange { start: Addr::NULL, end: Addr::NULL, find: pokeable_range }
    }

    /// Starts without a range. Finds the ranges that [`crate::fill`] may write.
    pub(crate) fn of_fill() -> WritableRange {
        WritableRange { start: Addr::NULL, end: Addr::NULL, find: fillable_range }
    }

    /// Checks that the edit's bytes lie in a range that may be written, and that the old bytes are there.
    pub(crate) fn compare(&mut self, edit: &Edit<'_>) -> Result<(), PokeError> {
        let &Edit { at, old, new, why } = edit;
        if !self.contains(edit) {
            (self.start, self.end) = (self.find)(at).unwrap_or_default();
            if !self.contains(edit) {
                return Err(PokeError::NotText { at, len: new.len(), why });
            }
        }
        if bytes(at, old.len()).eq(old.iter().copied()) {
            return Ok(());
        }
        let found = bytes(at, old.len()).collect();
        Err(PokeError::Mismatch { at, expected: old.to_vec(), found, why })
    }

    fn contains(&self, edit: &Edit<'_>) -> bool {
        self.start <= edit.at && edit.at < self.end && wide(edit.new.len()) <= (self.end - edit.at).cast_unsigned()
    }
}
