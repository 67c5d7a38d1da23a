//! The dynamic symbols of the process, for modules to use.
#![expect(unsafe_code, reason = "the C library finds symbols")]

use std::ffi::{CString, c_void};

use modload_edit::{Addr, wide};
use modload_loader::External;

use crate::builder::HostBuilder;
use crate::c_library;

impl HostBuilder {
    /// Offers the process's own dynamic symbols (of the C library, and the program's exported ones) for names that
    /// neither the host nor a module exports.
    #[must_use]
    pub fn process_symbols(mut self) -> HostBuilder {
        self.symbols.fallback = find;
        self
    }
}

/// Finds a symbol of the process. Some functions of the C library are replaced by those in [`c_library`].
fn find(name: &[u8]) -> Option<External> {
    let addr = c_library::instead_of(name, process_symbol(name)?);
    Some(External { addr, gpl_only: false, crc: None })
}

/// Returns the address of a dynamic symbol of the program or of one of its libraries: its default version or, for
/// `NAME@VERSION` as in an assembler's `.symver`, that version.
pub(crate) fn process_symbol(name: &[u8]) -> Option<Addr> {
    if let Some((name, version)) = split_version(name) {
        return versioned_symbol(libc::RTLD_DEFAULT, name, version);
    }
    let process = libloading::os::unix::Library::this();
    // SAFETY: only the address is taken, and nothing is read or called through it here.
    let symbol = unsafe { process.get::<*const ()>(name) }.ok()?;
    let address = symbol.into_raw();
    Some(Addr::new(wide(address.expose_provenance()))).filter(|addr| *addr != Addr::NULL)
}

/// Splits `NAME@VERSION` or `NAME@@VERSION`. Returns `None` for a name without a version.
pub(crate) fn split_version(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.iter().position(|byte| *byte == b'@')?;
    let version = &name[at + 1..];
    Some((&name[..at], version.strip_prefix(b"@").unwrap_or(version)))
}

/// Returns the address of a dynamic symbol of this version in the library with this handle, which is from dlopen(3) or one of those
/// that dlvsym(3) names.
pub(crate) fn versioned_symbol(handle: *mut c_void, name: &[u8], version: &[u8]) -> Option<Addr> {
    let (name, version) = (CString::new(name).ok()?, CString::new(version).ok()?);
    // SAFETY: both are strings that end, and the handle is as dlvsym(3) requires. Nothing is read or called through the
    // address here.
    let address = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
    Some(Addr::new(wide(address.expose_provenance()))).filter(|addr| *addr != Addr::NULL)
}
