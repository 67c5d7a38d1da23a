//! Changing what nobody can be running: the other verb.

use modload_edit::EditSet;

use crate::poke::PokeError;
use crate::region::Region;
use crate::spans::{self, Grouping, Pass, Side};
use crate::sync;
use crate::write::{TextLock, WriteFailed};

/// Changes published text that nobody can have entered, and data of any kind, all edits as one batch with
/// one synchronisation: the slice of a live patch whose functions were never enabled, a trampoline that nobody has been
/// led to. An edit is any number of bytes. Returns how many writes it took.
///
/// That nobody runs the text is for the caller to know: where that is not certain, [`crate::poke`].
///
/// # Errors
/// [`PokeError`]; but for [`PokeError::Stuck`], every byte is as it was.
pub fn fill(lock: &mut TextLock<'_>, edits: &EditSet) -> Result<u32, PokeError> {
    if lock.is_stuck() {
        return Err(PokeError::EarlierStuck);
    }
    let mut region = Region::filled();
    edits.iter().try_for_each(|edit| region.compare(&edit))?;
    let write = |lock: &mut TextLock<'_>, side| {
        let writes = spans::write(lock, edits, Pass::Whole, side, Grouping::Spans)?;
        sync::all_cores().map_err(|source| WriteFailed::Sync { source })?;
        Ok(writes)
    };
    write(lock, Side::New).map_err(|failed| match write(lock, Side::Old) {
        Ok(_) => PokeError::Write(failed),
        Err(failed) => {
            lock.stuck();
            PokeError::Stuck(failed)
        }
    })
}
