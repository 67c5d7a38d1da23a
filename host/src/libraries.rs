//! Shared libraries that a host opens for its modules.
#![expect(unsafe_code, reason = "the dynamic linker runs the constructors of libraries")]

use std::ffi::{OsStr, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use modload_loader::{External, ModuleLibrary, sentence};
use thiserror::Error;

use crate::builder::HostBuilder;
use crate::process_symbols::{external, symbol_in};

/// A shared library cannot be opened.
#[derive(Clone, PartialEq, Eq, Error)]
#[error("the library \"{}\" cannot be opened: {because}", .name.escape_debug())]
#[non_exhaustive]
pub struct LibraryError {
    /// The library's name.
    pub name: String,
    /// The dynamic linker's reason.
    pub because: String,
}

impl fmt::Debug for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

impl HostBuilder {
    /// Opens a shared library as dlopen(3) does, and offers the symbols of the library and of the libraries that it
    /// needs to modules. They are searched last: after the host's exports, the exports of modules and, if
    /// [`HostBuilder::process_symbols`] offers them, the symbols of the process. Several libraries are searched in the
    /// order of the calls.
    ///
    /// The library stays open until the process ends: threads may be in the code of modules for longer than the host
    /// exists.
    ///
    /// ```
    /// use modload::{Host, Image};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // SAFETY: the C library's mathematical functions have no constructors that matter.
    /// let host = unsafe { Host::builder().library("libm.so.6")? }.build()?;
    ///
    /// // `object` is the compiled form of: double cbrt(double); int root(int x) { return (int)cbrt(x); }
    /// # let object = modload_fixtures::c_object("double cbrt(double); int root(int x) { return (int)(cbrt(x) + 0.5); }")?;
    /// // SAFETY: the object is the code above.
    /// let roots = host.load(&unsafe { Image::trusted(object) }.named("roots"))?;
    /// // SAFETY: this is the type of `root`.
    /// let root = unsafe { roots.symbol::<extern "C" fn(i32) -> i32>("root")? };
    /// assert_eq!(root(27), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`LibraryError`]: the dynamic linker cannot open the library.
    ///
    /// # Safety
    /// The constructors of the library and of the libraries that it needs may run in this process, now and in this
    /// thread.
    pub unsafe fn library(mut self, name: impl AsRef<OsStr>) -> Result<HostBuilder, LibraryError> {
        let name = name.as_ref();
        // SAFETY: the caller vouches for the constructors.
        let library = unsafe { OpenLibrary::open(name) };
        let library = library.map_err(|because| LibraryError { name: name.to_string_lossy().into_owned(), because })?;
        let library = Arc::new(library);
        // It stays open for good.
        std::mem::forget(library.clone());
        self.symbols.libraries.push(library);
        Ok(self)
    }
}

/// A shared library. Dropping it closes it.
struct OpenLibrary {
    name: String,
    handle: AtomicPtr<c_void>,
}

impl fmt::Debug for OpenLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "library {:?}", self.name)
    }
}

impl OpenLibrary {
    /// Opens a library. The error is the dynamic linker's reason.
    ///
    /// # Safety
    /// As for [`HostBuilder::library`].
    unsafe fn open(name: &OsStr) -> Result<OpenLibrary, String> {
        // SAFETY: the caller vouches for the constructors.
        let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
        let handle = library.map_err(|error| sentence(&error))?.into_raw();
        Ok(OpenLibrary { name: name.to_string_lossy().into_owned(), handle: AtomicPtr::new(handle) })
    }
}

impl ModuleLibrary for OpenLibrary {
    fn symbol(&self, name: &[u8]) -> Option<External> {
        let handle = self.handle.load(Ordering::Relaxed);
        // SAFETY: the handle is that of the open library. The value is not dropped, so that the library stays open.
        let library = ManuallyDrop::new(unsafe { Library::from_raw(handle) });
        Some(external(name, symbol_in(&library, handle, name)?))
    }
}

impl Drop for OpenLibrary {
    fn drop(&mut self) {
        // SAFETY: the handle is that of the open library, and is not used any more.
        drop(unsafe { Library::from_raw(*self.handle.get_mut()) });
    }
}

/// Opens a library that a module asks for.
pub(crate) fn open_for_module(name: &str) -> Result<Arc<dyn ModuleLibrary>, String> {
    // SAFETY: whoever has vouched for the module has vouched for the library that the module names.
    let library = unsafe { OpenLibrary::open(OsStr::new(name)) }?;
    Ok(Arc::new(library))
}
