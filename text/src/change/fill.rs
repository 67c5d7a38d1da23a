//! Changes text that no thread can be running: the counterpart of `poke`.

use modload_edit::EditSet;

use crate::change::spans::{self, BatchPass, EditVersion, Grouping};
use crate::change::writable::WritableRange;
use crate::vocabulary::poke_error::PokeError;
use crate::writing::cores;
use crate::writing::text_lock::TextLock;

/// Changes published text that no thread can have entered, and data of any kind. All edits are one batch with one
/// synchronisation. Examples are the text of a live patch whose functions were never enabled, and a trampoline that no
/// site leads to yet. An edit is any number of bytes. Returns the number of writes.
///
/// The caller must know that no thread runs the text. Where that is not certain, use [`crate::poke`].
///
/// # Errors
/// [`PokeError`]. Except for [`PokeError::Stuck`], every byte is as it was.
pub fn fill(lock: &mut TextLock<'_>, edits: &EditSet) -> Result<u32, PokeError> {
    if lock.is_stuck() {
        return Err(PokeError::EarlierStuck);
    }
    let mut range = WritableRange::of_fill();
    edits.iter().try_for_each(|edit| range.compare(&edit))?;
    let grouping = Grouping::for_this_process();
    let write = |lock: &mut TextLock<'_>, version| {
        let writes = spans::write_pass(lock, edits, BatchPass::WholeEdits, version, grouping)?;
        cores::synchronise()?;
        Ok(writes)
    };
    write(lock, EditVersion::New).map_err(|failed| match write(lock, EditVersion::Old) {
        Ok(_) => PokeError::Write(failed),
        Err(failed) => {
            lock.set_stuck();
            PokeError::Stuck(failed)
        }
    })
}
