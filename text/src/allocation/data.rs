//! Data at its final place from the start.

use std::io;
use std::ptr;

use modload_edit::{Addr, index};

use crate::address_space::pointer::pointer;
use crate::allocation::arena::{Arena, DataAccess, Extent};
use crate::vocabulary::class::Class;
use crate::vocabulary::error::OutOfMemory;
use crate::vocabulary::machine::PAGE;

/// Data of a module that is being loaded. No other code knows its address, so it can be borrowed as a slice. Dropping
/// this value frees the data.
#[derive(Debug)]
pub struct NewData {
    extent: Extent,
}

/// Data that belongs to a module's code, which may read and write it at any time. Dropping this value frees the data.
#[derive(Debug)]
pub struct ModuleData {
    extent: Extent,
}

impl Arena {
    /// Takes `len` bytes of data, all zero.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn allocate_data(&'static self, len: u64, align: u64) -> Result<NewData, OutOfMemory> {
        let mut data = NewData { extent: self.take(Class::Data, len, align)? };
        data.bytes_mut().fill(0);
        Ok(data)
    }

    /// Takes whole pages for `len` bytes of ro_after_init data, all zero. The pages are writable until
    /// [`ModuleData::protect`]; pages that another module used before were read-only until now.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn allocate_ro_after_init(&'static self, len: u64, align: u64) -> Result<NewData, OutOfMemory> {
        let extent = self.take(Class::RoAfterInit, len.next_multiple_of(PAGE), align.max(PAGE))?;
        extent
            .protect(DataAccess::ReadWrite)
            .map_err(|source| OutOfMemory::Populate { class: Class::RoAfterInit, source })?;
        let mut data = NewData { extent };
        data.bytes_mut().fill(0);
        Ok(data)
    }
}

impl NewData {
    /// Returns the first address.
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.extent.start
    }

    /// Returns the bytes at their place.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: a mapped, initialised range of a data stripe that only this extent covers, for as long as it is
        // borrowed; only `bytes_mut` writes to the range, and that needs an exclusive borrow.
        unsafe { std::slice::from_raw_parts(pointer(self.extent.start), index(self.extent.len)) }
    }

    /// Returns the bytes for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(pointer(self.extent.start), index(self.extent.len)) }
    }

    /// Hands the data over to the module's code.
    #[must_use]
    pub fn hand_over(self) -> ModuleData {
        ModuleData { extent: self.extent }
    }
}

impl ModuleData {
    /// Returns the first address.
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.extent.start
    }

    /// Copies bytes out, as they are at this moment; the module's code may be changing them. Returns `None` if not all
    /// of them lie in this data.
    #[must_use]
    pub fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        self.extent.read(at, len)
    }

    /// Stores bytes for the module's code. Returns `None` if not all of them lie in this data.
    #[must_use]
    pub fn write(&self, at: Addr, bytes: &[u8]) -> Option<()> {
        self.extent.covers(at, bytes.len()).then(|| {
            // SAFETY: the destination lies within the extent (checked), which is writable until `protect` consumes
            // this value, and no Rust reference points into it.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(at), bytes.len()) };
        })
    }

    /// Makes ro_after_init data read-only for good: freed pages stay read-only until they are used again.
    ///
    /// # Errors
    /// The kernel's error, with the unchanged data.
    pub fn protect(self) -> Result<ProtectedData, (ModuleData, io::Error)> {
        match self.extent.protect(DataAccess::Read) {
            Ok(()) => Ok(ProtectedData { extent: self.extent }),
            Err(error) => Err((self, error)),
        }
    }
}

/// ro_after_init data once `init` has returned. Dropping this value frees the pages.
#[derive(Debug)]
pub struct ProtectedData {
    extent: Extent,
}

impl ProtectedData {
    /// Copies bytes out. Returns `None` if not all of them lie in this data.
    #[must_use]
    pub fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        self.extent.read(at, len)
    }
}
