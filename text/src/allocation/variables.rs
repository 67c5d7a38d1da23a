//! Numbers in the data of formed modules, by address: the values of static keys and static calls.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use modload_edit::Addr;

use crate::address_space::pointer::pointer;
use crate::allocation::arena::Arena;
use crate::vocabulary::class::Class;
use crate::vocabulary::error::WriteFailed;
use crate::writing::text_lock::TextLock;

/// Returns the class of the data that holds `len` bytes at an address, which must be a multiple of `len`.
fn class_of(at: Addr, len: u64) -> Option<Class> {
    let (class, rest) = Arena::existing()?.touched_from(at)?;
    (class != Class::Text && rest >= len && at.get().is_multiple_of(len)).then_some(class)
}

/// Returns the four bytes at an address in the arena's data; `None` if the arena has no data there, or the address is
/// not aligned.
#[must_use]
pub fn load_u32(at: Addr) -> Option<u32> {
    class_of(at, 4)?;
    // SAFETY: mapped, readable and aligned (checked above); other stores there have the same width, or come from a
    // module's code, of which no stronger access can be assumed.
    let variable = unsafe { AtomicU32::from_ptr(pointer(at).cast()) };
    Some(variable.load(Ordering::Acquire))
}

/// Returns the eight bytes at an address in the arena's data; `None` if the arena has no data there, or the address is
/// not aligned.
#[must_use]
pub fn load_u64(at: Addr) -> Option<u64> {
    class_of(at, 8)?;
    // SAFETY: as in `load_u32`.
    let variable = unsafe { AtomicU64::from_ptr(pointer(at).cast()) };
    Some(variable.load(Ordering::Acquire))
}

/// Stores four bytes into the data of a formed module: as one store where the data is writable, or through
/// `/proc/self/mem` where the data is read-only by now.
///
/// # Errors
/// [`WriteFailed`]; [`WriteFailed::NoVariable`] if the bytes are not in the arena's data, or not aligned.
pub fn store_u32(lock: &mut TextLock<'_>, at: Addr, value: u32) -> Result<(), WriteFailed> {
    match class_of(at, 4) {
        None => Err(WriteFailed::NoVariable { at }),
        Some(Class::Data) => {
            // SAFETY: as in `load_u32`; the stripe is always writable, and no Rust reference points into the data of a
            // formed module.
            let variable = unsafe { AtomicU32::from_ptr(pointer(at).cast()) };
            variable.store(value, Ordering::Release);
            Ok(())
        }
        Some(_) => lock.write(at, &value.to_ne_bytes()),
    }
}

/// Works like [`store_u32`], for eight bytes.
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
