//! Numbers in the data of formed modules, by address: what static keys and static calls keep there.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use modload_edit::Addr;

use crate::arena::{Arena, Class};
use crate::reserve::pointer;
use crate::write::{TextLock, WriteFailed};

/// The class of the data that holds `len` bytes at an address, aligned to their number.
fn class_of(at: Addr, len: u64) -> Option<Class> {
    let (class, rest) = Arena::existing()?.touched_from(at)?;
    (class != Class::Text && rest >= len && at.get().is_multiple_of(len)).then_some(class)
}

/// The four bytes at an address in the arena's data. `None` if they are not there, or not aligned.
#[must_use]
pub fn load_u32(at: Addr) -> Option<u32> {
    class_of(at, 4)?;
    // SAFETY: mapped, readable and aligned (looked at above); who stores there does so with the same width, or is a
    // module's code, of which nothing better can be said.
    let variable = unsafe { AtomicU32::from_ptr(pointer(at).cast()) };
    Some(variable.load(Ordering::Acquire))
}

/// The eight bytes at an address in the arena's data. `None` if they are not there, or not aligned.
#[must_use]
pub fn load_u64(at: Addr) -> Option<u64> {
    class_of(at, 8)?;
    // SAFETY: as in `load_u32`.
    let variable = unsafe { AtomicU64::from_ptr(pointer(at).cast()) };
    Some(variable.load(Ordering::Acquire))
}

/// Stores four bytes into the data of a formed module: as one store where it can be written, past its protection where
/// it is read-only by now.
///
/// # Errors
/// [`WriteFailed`]; [`WriteFailed::NoVariable`] if they are not in the arena's data, or not aligned.
pub fn store_u32(lock: &mut TextLock<'_>, at: Addr, value: u32) -> Result<(), WriteFailed> {
    match class_of(at, 4) {
        None => Err(WriteFailed::NoVariable { at }),
        Some(Class::Data) => {
            // SAFETY: as in `load_u32`; the stripe is always writable, and no Rust reference points into what is a formed
            // module's.
            let variable = unsafe { AtomicU32::from_ptr(pointer(at).cast()) };
            variable.store(value, Ordering::Release);
            Ok(())
        }
        Some(_) => lock.write(at, &value.to_ne_bytes()),
    }
}

/// [`store_u32`] for eight bytes.
///
/// # Errors
/// As for [`store_u32`].
pub fn store_u64(lock: &mut TextLock<'_>, at: Addr, value: u64) -> Result<(), WriteFailed> {
    match class_of(at, 8) {
        None => Err(WriteFailed::NoVariable { at }),
        Some(Class::Data) => {
            // SAFETY: as in `store_u32`.
            let variable = unsafe { AtomicU64::from_ptr(pointer(at).cast()) };
            variable.store(value, Ordering::Release);
            Ok(())
        }
        Some(_) => lock.write(at, &value.to_ne_bytes()),
    }
}
