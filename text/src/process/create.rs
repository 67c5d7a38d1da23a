//! Creates the arena of the process, and installs the handlers that the arena needs.

use crate::address_space::reserve;
use crate::allocation::arena::Arena;
use crate::handlers::fork;
use crate::handlers::trap;
use crate::vocabulary::error::ArenaError;
use crate::writing::cores;
use crate::writing::text_lock::TextLock;

/// The sizes to try for the whole arena, largest first.
const SIZES: [u64; 4] = [1 << 30, 1 << 29, 1 << 28, 1 << 27];

impl Arena {
    /// Returns the arena of this process, and creates it at the first call.
    ///
    /// # Errors
    /// [`ArenaError`] names the rule of the system that prevents the arena. A failure is not remembered, and the next
    /// call tries again.
    pub fn get() -> Result<&'static Arena, ArenaError> {
        if let Some(arena) = Arena::existing() {
            return Ok(arena);
        }
        // The fork handlers hold the lock of the creation over a fork, so they come first.
        fork::install().map_err(|source| ArenaError::Handler { what: "fork handlers", source })?;
        let _creating = fork::lock_creation();
        if let Some(arena) = Arena::existing() {
            return Ok(arena);
        }
        cores::register_membarrier();
        TextLock::take().open().map_err(ArenaError::OpenMemory)?;
        let (reserved, low) = match SIZES.iter().find_map(|&len| reserve::low(len)) {
            Some(reserved) => (reserved, true),
            None => (reserve::anywhere(SIZES[0]).map_err(ArenaError::Reserve)?, false),
        };
        let installed = || trap::install().map_err(|source| ArenaError::Handler { what: "SIGTRAP handler", source });
        let built = Arena::build(reserved, low).and_then(|arena| installed().map(|()| arena));
        let arena = built.inspect_err(|_| {
            // Address space that stays reserved costs nothing, and the first failure is the one to report.
            let _ = reserved.release();
        })?;
        Ok(arena.into_global())
    }
}
