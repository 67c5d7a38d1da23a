//! The dynamic symbols of the process, for modules to use.
#![expect(unsafe_code, reason = "the C library finds symbols")]

use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;

use libloading::os::unix::Library;
use modload_edit::{Addr, wide};
use modload_loader::External;

use crate::builder::{HostBuilder, ProcessSymbols};
use crate::c_library;
use crate::libraries::open_for_module;

impl HostBuilder {
    /// Offers the process's own dynamic symbols (of the C library, and the program's exported ones) for names that
    /// neither the host nor a module exports. Modules may ask for further libraries: `MODULE_INFO(library, "libm.so.6")`
    /// opens one as dlopen(3) does, for as long as the module's memory exists.
    ///
    /// Code that was compiled for a program (`-fPIE`) reaches data of libraries by 32-bit distances, which do not span
    /// the address space. Objects that never change have a copy near the module for such code: `stdin`, `stdout` and
    /// `stderr`, and the tables of C++ types (`_ZTV`, `_ZTI`, `_ZTS`, `_ZTT`). Other objects are refused with the advice
    /// to compile with -fPIC.
    #[must_use]
    pub fn process_symbols(mut self) -> HostBuilder {
        self.symbols.process = ProcessSymbols { find, constant, open: open_for_module };
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

/// Returns the contents of an object of the process that never changes.
fn constant(name: &[u8], at: Addr) -> Option<Vec<u8>> {
    /// Pointers to the C library's streams. glibc permits a program to assign them, which programs do at their start.
    const POINTERS: [&[u8]; 3] = [b"stdin", b"stdout", b"stderr"];
    /// Virtual tables, type information, names of types, and tables of virtual tables (Itanium C++ ABI, 5.1.4.1).
    const TABLES: [&[u8]; 4] = [b"_ZTV", b"_ZTI", b"_ZTS", b"_ZTT"];
    let len = if POINTERS.contains(&name) {
        size_of::<*const ()>()
    } else if TABLES.iter().any(|table| name.starts_with(table)) {
        object_size(at)?
    } else {
        return None;
    };
    let start = std::ptr::with_exposed_provenance::<u8>(modload_edit::index(at.get()));
    // SAFETY: the dynamic linker has found the object of this size there, and nothing writes it any more.
    Some(unsafe { std::slice::from_raw_parts(start, len) }.to_vec())
}

/// Returns the size of the object at an address, from the symbol table of its library.
fn object_size(at: Addr) -> Option<usize> {
    /// `RTLD_DL_SYMENT` of `<dlfcn.h>`: the symbol is wanted.
    const SYMBOL: libc::c_int = 1;
    unsafe extern "C" {
        fn dladdr1(
            address: *const c_void,
            info: *mut libc::Dl_info,
            extra: *mut *const libc::Elf64_Sym,
            flags: libc::c_int,
        ) -> libc::c_int;
    }
    let address = std::ptr::with_exposed_provenance(modload_edit::index(at.get()));
    let (mut info, mut symbol) = (MaybeUninit::<libc::Dl_info>::uninit(), std::ptr::null());
    // SAFETY: the call writes both results.
    let found = unsafe { dladdr1(address, info.as_mut_ptr(), &raw mut symbol, SYMBOL) };
    // SAFETY: null, or a symbol of a library that is loaded.
    let symbol = unsafe { symbol.as_ref() }.filter(|_| found != 0)?;
    usize::try_from(symbol.st_size).ok().filter(|size| *size != 0)
}
