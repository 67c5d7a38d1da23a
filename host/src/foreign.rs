//! Typed symbols of modules, integer calls, module files, and the process's own dynamic symbols.
#![expect(unsafe_code, reason = "nothing can check the type of a symbol, nor what a file's code does")]

use std::ffi::CString;
use std::fmt;
use std::marker::PhantomData;
use std::mem::{size_of, transmute, transmute_copy};
use std::ops::Deref;
use std::path::Path;
use std::ptr;

use modload_edit::{Addr, index, wide};
use modload_loader::{Image, Input, LeftBy, ModuleSymbolKind, Proof, Reference, UnloadError, sentence};
use modload_static_keys::{KeyError, StaticCall};
use modload_threads::boundary;
use thiserror::Error;

use crate::builder::HostBuilder;
use crate::file::{ModuleFile, SIZE_LIMIT, TrustedFileError};

/// A loaded module. It stays as long as this, a clone of it, or a [`Symbol`] of it is held; letting go of it does not
/// unload it.
#[derive(Clone, Debug)]
pub struct Module {
    reference: Reference,
}

/// What a module has to say of itself.
impl Deref for Module {
    type Target = modload_loader::Module;
    fn deref(&self) -> &modload_loader::Module {
        &self.reference
    }
}

/// A symbol cannot be had.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SymbolError {
    /// The module has none of this name.
    #[error("{module} has no symbol \"{symbol}\"")]
    NotFound {
        /// The module.
        module: String,
        /// What was asked for.
        symbol: String,
    },
    /// It is a variable, and a function was asked for.
    #[error("\"{symbol}\" of {module} is a variable, not a function")]
    NotAFunction {
        /// The module.
        module: String,
        /// What was asked for.
        symbol: String,
    },
    /// It was called, and left other than by returning.
    #[error("\"{symbol}\" of {module} was left by {left}")]
    Left {
        /// The module.
        module: String,
        /// What was called.
        symbol: String,
        /// By what, and where.
        left: Box<LeftBy>,
    },
    /// More arguments than are passed in registers.
    #[error("\"{symbol}\" of {module} cannot be called with {count} arguments: six at most")]
    TooManyArguments {
        /// The module.
        module: String,
        /// What was asked for.
        symbol: String,
        /// How many were given.
        count: usize,
    },
}

impl fmt::Debug for SymbolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// A function or a variable of a module, by its address: `F` is a function pointer or a raw pointer.
pub struct Symbol<'m, F> {
    value: F,
    module: PhantomData<&'m Module>,
}

impl<F> Deref for Symbol<'_, F> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.value
    }
}

impl<F: Copy> Copy for Symbol<'_, F> {}

impl<F: Copy> Clone for Symbol<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> fmt::Debug for Symbol<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Symbol").finish_non_exhaustive()
    }
}

impl Module {
    pub(crate) fn new(reference: Reference) -> Module {
        Module { reference }
    }

    /// Another reference to the same module.
    pub(crate) fn reference(&self) -> Reference {
        self.reference.clone()
    }

    /// The symbol of this name, exported or not, unless it goes when `init` has returned.
    ///
    /// # Errors
    /// [`SymbolError::NotFound`].
    ///
    /// # Safety
    /// Nothing checks `F`. It must be a function pointer of exactly the function's type (`extern "C"`), or a raw
    /// pointer to the variable's type; what the function demands of its callers is the caller's to keep.
    pub unsafe fn symbol<F: Copy>(&self, name: &str) -> Result<Symbol<'_, F>, SymbolError> {
        const { assert!(size_of::<F>() == size_of::<*const ()>(), "a symbol is a function pointer or a raw pointer") };
        let pointer = self.address(name)?.1;
        // SAFETY: `F` is as large as a pointer (checked when this is compiled); the caller vouches for the rest.
        let value = unsafe { transmute_copy::<*const (), F>(&pointer) };
        Ok(Symbol { value, module: PhantomData })
    }

    /// Calls a function with integers, as many as its type has, and returns what stands in the result register.
    ///
    /// Whatever leaves the function other than by returning ends here and is an error of this call: an exception, a panic,
    /// `pthread_exit`, the cancellation of this thread. After a cancellation the thread ends, if its own frames allow that: those of
    /// the process's first thread and of Rust's `std::thread` do not.
    ///
    /// # Errors
    /// [`SymbolError`]: there is no such function, there are more than six arguments, or the function was left so.
    ///
    /// # Safety
    /// The function must take integers or pointers only, not more than are given, and these must be what it demands.
    pub unsafe fn call(&self, name: &str, arguments: &[u64]) -> Result<u64, SymbolError> {
        type Function = extern "C-unwind" fn(u64, u64, u64, u64, u64, u64) -> u64;
        let (kind, pointer) = self.address(name)?;
        let (module, symbol) = (|| self.name().to_owned(), || name.escape_debug().to_string());
        if kind == ModuleSymbolKind::Object {
            return Err(SymbolError::NotAFunction { module: module(), symbol: symbol() });
        }
        let mut registers = [0; 6];
        let Some(given) = registers.get_mut(..arguments.len()) else {
            return Err(SymbolError::TooManyArguments { module: module(), symbol: symbol(), count: arguments.len() });
        };
        given.copy_from_slice(arguments);
        let [a, b, c, d, e, f] = registers;
        // SAFETY: a function of the module's published text; with the System V ABI integer arguments are in six
        // registers, and a function that takes fewer does not look at the others. The caller vouches for the type.
        let function = unsafe { transmute::<*const (), Function>(pointer) };
        let called = self.guard(|| function(a, b, c, d, e, f));
        boundary::end_if_cancelled();
        called.map_err(|left| SymbolError::Left { module: module(), symbol: symbol(), left: Box::new(left) })
    }

    fn address(&self, name: &str) -> Result<(ModuleSymbolKind, *const ()), SymbolError> {
        let symbol = self.reference.lasting_symbol(name).ok_or_else(|| SymbolError::NotFound {
            module: self.name().to_owned(),
            symbol: name.escape_debug().to_string(),
        })?;
        Ok((symbol.kind, ptr::with_exposed_provenance(index(symbol.addr.get()))))
    }

    /// Lets go of the module and unloads it.
    ///
    /// # Errors
    /// [`UnloadError`]: somebody else uses it.
    pub fn unload(self) -> Result<(), UnloadError> {
        self.reference.unload()
    }
}

/// Reads a module file, compressed or not. Its stem becomes the module's name if its `.modinfo` has none.
///
/// # Errors
/// [`TrustedFileError`]: the file cannot be read or decompressed, or holds more than 1 GiB.
///
/// # Safety
/// As for [`Image::trusted`]: the file's author is trusted.
pub unsafe fn read_trusted(path: impl AsRef<Path>) -> Result<Image<'static>, TrustedFileError> {
    let path = path.as_ref();
    let failed = |source| TrustedFileError { path: path.to_owned(), source };
    let file = ModuleFile::read(path, SIZE_LIMIT).map_err(failed)?;
    let stem = file.stem.clone();
    // SAFETY: the caller's.
    Ok(unsafe { Image::trusted_unit(vec![file.into_input()]) }.named(stem))
}

/// The promise that those whom a part of a program serves are trusted: with one, files can be loaded and functions
/// called at their word without unsafe code. It is made once, where it is decided who they are; `modload-control`'s
/// server asks for one.
#[derive(Clone, Copy, Debug)]
pub struct Trust(());

impl Trust {
    /// Trusts whoever can reach this value or what it is given to: the clients of a control socket, say.
    ///
    /// # Safety
    /// They choose modules as [`Image::trusted`] demands, and call functions as [`Module::call`] demands.
    #[must_use]
    pub unsafe fn new() -> Trust {
        Trust(())
    }

    /// [`Image::trusted_unit`].
    #[must_use]
    pub fn unit(self, inputs: Vec<Input<'_>>) -> Image<'_> {
        // SAFETY: promised to `Trust::new`.
        unsafe { Image::trusted_unit(inputs) }
    }

    /// [`Module::call`].
    ///
    /// # Errors
    /// As [`Module::call`].
    pub fn call(self, module: &Module, name: &str, arguments: &[u64]) -> Result<u64, SymbolError> {
        // SAFETY: promised to `Trust::new`.
        unsafe { module.call(name, arguments) }
    }
}

/// A dynamic symbol of the program or of one of its libraries: the default version of it or, for `NAME@VERSION`, that version, as
/// an assembler writes it for `.symver`.
pub(crate) fn process_symbol(name: &[u8]) -> Option<Addr> {
    if let Some(at) = name.iter().position(|byte| *byte == b'@') {
        let version = &name[at + 1..];
        let version = version.strip_prefix(b"@").unwrap_or(version);
        return versioned_symbol(&name[..at], version);
    }
    let process = libloading::os::unix::Library::this();
    // SAFETY: only the address is taken, and nothing is read or called through it here.
    let symbol = unsafe { process.get::<*const ()>(name) }.ok()?;
    let address = symbol.into_raw();
    Some(Addr::new(wide(address.expose_provenance()))).filter(|addr| *addr != Addr::NULL)
}

/// A dynamic symbol of this version.
fn versioned_symbol(name: &[u8], version: &[u8]) -> Option<Addr> {
    let (name, version) = (CString::new(name).ok()?, CString::new(version).ok()?);
    // SAFETY: both are strings that end, and the handle is one of those that dlvsym(3) names. Nothing is read or called through
    // the address here.
    let address = unsafe { libc::dlvsym(libc::RTLD_DEFAULT, name.as_ptr(), version.as_ptr()) };
    Some(Addr::new(wide(address.expose_provenance()))).filter(|addr| *addr != Addr::NULL)
}

/// Has a static call of the host's call another function from now on; null for none.
///
/// # Errors
/// [`KeyError`]: it calls what it called before.
///
/// # Safety
/// The function has the type that modules declare the call with, and stays until another one is set and nobody is in it. A
/// module that has gone, in quarantine or by force, goes on to call what was set when it went.
pub unsafe fn set_static_call(call: &'static StaticCall, function: *const ()) -> Result<(), KeyError> {
    let (key, _) = call.addrs()?;
    modload_static_keys::update_static_call(key, Addr::new(wide(function.expose_provenance())))
}

/// The promises that a host may be built on.
impl HostBuilder {
    /// Unloads without looking at stacks. A look takes the time in which every busy thread of the process gets a
    /// processor: microseconds where there are enough of them, milliseconds where there are not.
    ///
    /// # Safety
    /// Whoever unloads a module of this host vouches that no thread is in its code when it goes: that its own threads are
    /// gone when its `exit` returns, and others before it is called.
    #[must_use]
    pub unsafe fn unload_unseen(mut self) -> HostBuilder {
        self.policy.proof = Proof::Promise;
        self
    }
}
