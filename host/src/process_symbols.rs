//! The dynamic symbols of the process, for modules to use.
#![expect(unsafe_code, reason = "the C library finds symbols")]

use std::ffi::{CString, c_void};

use libloading::os::unix::Library;
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

/// Finds a symbol of the process.
fn find(name: &[u8]) -> Option<External> {
    Some(external(name, process_symbol(name)?))
}

/// Returns what a module gets for a symbol at this address. Some functions are replaced by those in [`c_library`].
pub(crate) fn external(name: &[u8], addr: Addr) -> External {
    External { addr: c_library::instead_of(name, addr), gpl_only: false, crc: None }
}

/// Returns the address of a dynamic symbol of the program or of one of its libraries.
pub(crate) fn process_symbol(name: &[u8]) -> Option<Addr> {
    symbol_in(&Library::this(), libc::RTLD_DEFAULT, name)
}

/// Returns the address of a symbol that a library offers: its default version or, for `NAME@VERSION` as in an assembler's
/// `.symver`, that version, searched by the library's handle or by one of those that dlvsym(3) names.
pub(crate) fn symbol_in(library: &Library, versions: *mut c_void, name: &[u8]) -> Option<Addr> {
    if let Some(at) = name.iter().position(|byte| *byte == b'@') {
        let version = &name[at + 1..];
        let version = version.strip_prefix(b"@").unwrap_or(version);
        return versioned_symbol(versions, &name[..at], version);
    }
    // SAFETY: only the address is taken, and nothing is read or called through it here.
    let symbol = unsafe { library.get::<*const ()>(name) }.ok()?;
    let address = symbol.into_raw();
    Some(Addr::new(wide(address.expose_provenance()))).filter(|addr| *addr != Addr::NULL)
}

/// Returns the address of a dynamic symbol of this version.
fn versioned_symbol(handle: *mut c_void, name: &[u8], version: &[u8]) -> Option<Addr> {
    let (name, version) = (CString::new(name).ok()?, CString::new(version).ok()?);
    // SAFETY: both are strings that end, and the handle is as dlvsym(3) requires. Nothing is read or called through the
    // address here.
    let address = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
    Some(Addr::new(wide(address.expose_provenance()))).filter(|addr| *addr != Addr::NULL)
}
