//! Typed symbols of modules, calls with integer arguments, trusted module files, and the process's own dynamic symbols.
#![expect(unsafe_code, reason = "nothing can check the type of a symbol, nor the effects of a file's code")]

use std::fmt;
use std::marker::PhantomData;
use std::mem::{size_of, transmute, transmute_copy};
use std::ops::Deref;
use std::path::Path;
use std::ptr;

use modload_edit::index;
use modload_loader::{Image, Input, LeftBy, ModuleSymbolKind, Proof, Reference, UnloadError, sentence};
use modload_threads::boundary;
use thiserror::Error;

use crate::builder::HostBuilder;
use crate::file::{ModuleFile, SIZE_LIMIT, TrustedFileError};

/// A reference to a loaded module. The module cannot be unloaded while this value, a clone of it, or a [`Symbol`] of it
/// exists. Dropping the last reference does not unload the module.
///
/// ```
/// use modload::{Host, Image};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // `object` is the compiled form of: int next(void) { static int last = 7; return ++last; }
/// # let object = modload_fixtures::c_object("int next(void) { static int last = 7; return ++last; }")?;
/// let host = Host::builder().build()?;
/// // SAFETY: the object is the code above.
/// let module = host.load(&unsafe { Image::trusted(object) }.named("counter"))?;
///
/// let another = module.clone();
/// let refused = module.unload().unwrap_err();
/// assert_eq!(refused.to_string(), "counter: in use (1 reference is held)");
/// another.unload()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Module {
    reference: Reference,
}

/// Gives access to the facts about the module.
impl Deref for Module {
    type Target = modload_loader::Module;
    fn deref(&self) -> &modload_loader::Module {
        &self.reference
    }
}

/// A symbol cannot be used.
#[derive(Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SymbolError {
    /// The module has no symbol of this name.
    #[error("{module} has no symbol \"{symbol}\"")]
    NotFound {
        /// The module.
        module: String,
        /// The name of the symbol.
        symbol: String,
    },
    /// The symbol is a variable, but a function was requested.
    #[error("\"{symbol}\" of {module} is a variable, not a function")]
    NotAFunction {
        /// The module.
        module: String,
        /// The name of the symbol.
        symbol: String,
    },
    /// The function did not return normally.
    #[error("\"{symbol}\" of {module} was left by {left}")]
    Left {
        /// The module.
        module: String,
        /// The name of the function.
        symbol: String,
        /// How and where the function was left.
        left: Box<LeftBy>,
    },
    /// There are more arguments than registers for them.
    #[error("\"{symbol}\" of {module} cannot be called with {count} arguments: six at most")]
    TooManyArguments {
        /// The module.
        module: String,
        /// The name of the function.
        symbol: String,
        /// The number of given arguments.
        count: usize,
    },
}

impl fmt::Debug for SymbolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sentence(self))
    }
}

/// A function or a variable of a module. `F` is a function pointer or a raw pointer.
///
/// ```
/// use modload::{Host, Image};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // `object` is the compiled form of: int last = 7; int next(void) { return ++last; }
/// # let object = modload_fixtures::c_object("int last = 7; int next(void) { return ++last; }")?;
/// # let host = Host::builder().build()?;
/// # // SAFETY: the object is the code above.
/// # let module = host.load(&unsafe { Image::trusted(object) }.named("counter"))?;
/// // SAFETY: this is the type of `next`.
/// let next = unsafe { module.symbol::<extern "C" fn() -> i32>("next")? };
/// assert_eq!(next(), 8);
/// // SAFETY: `last` is an int.
/// let last = unsafe { module.symbol::<*const i32>("last")? };
/// // SAFETY: no other thread calls `next` now.
/// assert_eq!(unsafe { last.read() }, 8);
/// # Ok(())
/// # }
/// ```
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

    /// Returns another reference to the same module.
    #[cfg(feature = "livepatch")]
    pub(crate) fn reference(&self) -> Reference {
        self.reference.clone()
    }

    /// Returns the symbol of this name, exported or not, unless it lies in an init section.
    ///
    /// # Errors
    /// [`SymbolError::NotFound`].
    ///
    /// # Safety
    /// `F` is not checked. It must be a function pointer of exactly the function's type (`extern "C"`), or a raw
    /// pointer to the variable's type. The caller must follow the requirements of the function.
    pub unsafe fn symbol<F: Copy>(&self, name: &str) -> Result<Symbol<'_, F>, SymbolError> {
        const { assert!(size_of::<F>() == size_of::<*const ()>(), "a symbol is a function pointer or a raw pointer") };
        let pointer = self.address(name)?.1;
        // SAFETY: `F` is as large as a pointer (checked at compile time). The caller guarantees the rest.
        let value = unsafe { transmute_copy::<*const (), F>(&pointer) };
        Ok(Symbol { value, module: PhantomData })
    }

    /// Calls a function with as many integers as its type has parameters. Returns the contents of the result register.
    ///
    /// If the function ends other than by returning, this ends here and is an error of this call: an exception, a
    /// panic, `pthread_exit`, or the cancellation of this thread. After a cancellation the thread ends if its own
    /// frames allow that. The frames of the process's first thread and of Rust's `std::thread` do not.
    ///
    /// ```
    /// use modload::{Host, Image};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // `object` is the compiled form of: int add(int a, int b) { return a + b; }
    /// # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
    /// # let host = Host::builder().build()?;
    /// # // SAFETY: the object is the code above.
    /// # let module = host.load(&unsafe { Image::trusted(object) }.named("adder"))?;
    /// // SAFETY: `add` takes two integers.
    /// assert_eq!(unsafe { module.call("add", &[2, 3])? }, 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SymbolError`]: there is no such function, there are more than six arguments, or the function did not return.
    ///
    /// # Safety
    /// The function must take integers or pointers only, not more than are given, and the arguments must be valid for
    /// it.
    pub unsafe fn call(&self, name: &str, arguments: &[u64]) -> Result<u64, SymbolError> {
        type IntegerFunction = extern "C-unwind" fn(u64, u64, u64, u64, u64, u64) -> u64;
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
        // SAFETY: this is a function in the module's published text. By the System V ABI the first six integer
        // arguments are in registers, and a function with fewer parameters ignores the others. The caller guarantees
        // the type.
        let function = unsafe { transmute::<*const (), IntegerFunction>(pointer) };
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

    /// Drops this reference and unloads the module.
    ///
    /// # Errors
    /// [`UnloadError`]: the module is in use.
    pub fn unload(self) -> Result<(), UnloadError> {
        self.reference.unload()
    }
}

/// Reads a module file, compressed or not. Its stem becomes the module's name if its `.modinfo` has none.
///
/// ```
/// use modload::{Host, read_trusted};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("adder.o");
/// # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
/// # std::fs::write(&path, object)?;
/// let host = Host::builder().build()?;
/// // SAFETY: the file is the compiled form of: int add(int a, int b) { return a + b; }
/// let adder = host.load(&unsafe { read_trusted(&path)? })?;
/// assert_eq!(adder.name(), "adder");
/// # Ok(())
/// # }
/// ```
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
    // SAFETY: the caller fulfils the contract.
    Ok(unsafe { Image::trusted_unit(vec![file.into_input()]) }.named(stem))
}

/// The promise that the clients of a part of a program are trusted. With this value, files can be loaded and functions
/// called for these clients without unsafe code. The promise is made once, where the program decides who its clients
/// are. The server of `modload-control` requires a `Trust`.
///
/// ```
/// use modload::{Host, Input, Trust};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let object = modload_fixtures::c_object("int add(int a, int b) { return a + b; }")?;
/// // SAFETY: the only client of this program is its own user, and the user trusts the modules and knows their functions.
/// let trust = unsafe { Trust::new() };
///
/// // From here on no unsafe code is necessary.
/// let host = Host::builder().build()?;
/// let adder = host.load(&trust.unit(vec![Input { name: "adder.o".into(), bytes: object.into() }]).named("adder"))?;
/// assert_eq!(trust.call(&adder, "add", &[2, 3])?, 5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Trust(());

impl Trust {
    /// Trusts all code that can reach this value, and all clients for which that code acts, such as the clients of a
    /// control socket.
    ///
    /// # Safety
    /// These clients must choose modules as [`Image::trusted`] demands, and call functions as [`Module::call`] demands.
    #[must_use]
    pub unsafe fn new() -> Trust {
        Trust(())
    }

    /// Like [`Image::trusted_unit`], by this promise.
    #[must_use]
    pub fn unit(self, inputs: Vec<Input<'_>>) -> Image<'_> {
        // SAFETY: promised to `Trust::new`.
        unsafe { Image::trusted_unit(inputs) }
    }

    /// Like [`Module::call`], by this promise.
    ///
    /// # Errors
    /// As [`Module::call`].
    pub fn call(self, module: &Module, name: &str, arguments: &[u64]) -> Result<u64, SymbolError> {
        // SAFETY: promised to `Trust::new`.
        unsafe { module.call(name, arguments) }
    }
}

/// Options that are promises by the caller.
impl HostBuilder {
    /// Unloads modules without examining the stacks of threads. An examination takes until every busy thread of the
    /// process has run once: microseconds if there are enough processors, milliseconds if not.
    ///
    /// # Safety
    /// The caller guarantees for every unload that no thread is in the module's code when it goes: threads of the
    /// module must have ended when its `exit` returns, and other threads must have left before it is called.
    #[must_use]
    pub unsafe fn unload_unseen(mut self) -> HostBuilder {
        self.policy.proof = Proof::Promise;
        self
    }
}
