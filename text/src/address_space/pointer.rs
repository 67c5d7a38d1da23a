//! Addresses as pointers.

use modload_edit::{Addr, index};

/// Returns the address as a pointer into memory that no Rust object owns.
pub(crate) fn pointer(at: Addr) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(index(at.get()))
}
