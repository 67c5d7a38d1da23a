//! Shared libraries that a host opens for its modules.
#![expect(unsafe_code, reason = "the dynamic linker runs the constructors of libraries")]

use std::ffi::OsStr;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use modload_loader::sentence;
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
        let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
        let library = library
            .map_err(|error| LibraryError { name: name.to_string_lossy().into_owned(), because: sentence(&error) })?;
        let handle = AtomicPtr::new(library.into_raw());
        self.symbols.libraries.0.push(Box::new(move |name| {
            let handle = handle.load(Ordering::Relaxed);
            // SAFETY: the handle is that of the open library. The value is not dropped, so that the library stays open.
            let library = ManuallyDrop::new(unsafe { Library::from_raw(handle) });
            Some(external(name, symbol_in(&library, handle, name)?))
        }));
        Ok(self)
    }
}
