//! Where a batch may write, and what is there before.

use modload_edit::{Addr, Edit, wide};

use crate::arena::{Arena, Class};
use crate::poke::PokeError;
use crate::reserve::pointer;
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

/// The same, annexes, and data whose protection only this crate writes past.
fn whatever_is_filled(at: Addr) -> Option<(Addr, Addr)> {
    let constants = || {
        let (class, rest) = Arena::existing()?.touched_from(at)?;
        matches!(class, Class::ReadOnly | Class::RoAfterInit).then_some((at, at + rest))
    };
    text(at).or_else(|| annex::containing(at)).or_else(constants)
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
        // SAFETY: published or registered text, an annex or constants, which are mapped and readable and, since the caller has
        // the lock, not being changed.
        let found = unsafe { std::slice::from_raw_parts(pointer(at).cast_const(), old.len()) };
        if found == old {
            return Ok(());
        }
        Err(PokeError::Mismatch { at, expected: old.to_vec(), found: found.to_vec(), why })
    }

    fn holds(&self, edit: &Edit<'_>) -> bool {
        self.start <= edit.at && edit.at < self.end && wide(edit.new.len()) <= (self.end - edit.at).cast_unsigned()
    }
}
