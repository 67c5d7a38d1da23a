//! The only file of this crate with unsafe code: the promise that an image may run, and the calls that rely on that
//! promise.
#![expect(unsafe_code, reason = "this is where the module's own functions are called")]

use std::borrow::Cow;
use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use modload_edit::{Addr, index, wide};
use modload_threads::boundary::{self, Left};

use crate::elf::link::Input;
use crate::vocabulary::state::State;

/// Bytes of a module from a trusted author, with the name and the parameters for loading.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    pub(crate) inputs: Vec<Input<'a>>,
    pub(crate) wanted: Vec<String>,
    pub(crate) stem: String,
    pub(crate) params: Vec<String>,
}

impl<'a> Image<'a> {
    /// Creates an image that may be loaded and run, from a relocatable object or a static archive.
    ///
    /// # Safety
    /// Loading runs the module's code in this process, and that code can do anything. The caller guarantees that
    /// relocations and tables are those of the compiler; that functions keep to the C ABI and do not corrupt the host's
    /// memory (they may throw: an exception that leaves `init` fails the load); and that no function of the module is
    /// called by a saved address while the module is unloaded or afterwards. Threads in the module's code are found by
    /// their stacks at that time, but not a coroutine that is suspended in the code on a stack of its own.
    #[must_use]
    pub unsafe fn trusted(bytes: impl Into<Cow<'a, [u8]>>) -> Image<'a> {
        let input = Input { name: String::new(), bytes: bytes.into() };
        // SAFETY: the caller's.
        unsafe { Image::trusted_unit(vec![input]) }
    }

    /// Creates an image from several objects and archives, which become one module. Local symbols stay separate, global
    /// symbols are shared, and exports are merged. Archive members are taken if they define a symbol that is undefined
    /// when the archive is searched. Without any object, members that define `init_module`, `cleanup_module` or a
    /// [wanted](Image::want) symbol are taken, or all members if no member defines one.
    ///
    /// # Safety
    /// As for [`Image::trusted`].
    #[must_use]
    pub unsafe fn trusted_unit(inputs: Vec<Input<'a>>) -> Image<'a> {
        Image { inputs, wanted: Vec::new(), stem: "module".into(), params: Vec::new() }
    }

    /// Requires archive members that define this symbol: GNU ld's `--undefined`.
    #[must_use]
    pub fn want(mut self, symbol: impl Into<String>) -> Image<'a> {
        self.wanted.push(symbol.into());
        self
    }

    /// Sets the name of a module whose `.modinfo` has none; as a rule, the stem of the file name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Image<'a> {
        self.stem = name.into();
        self
    }

    /// A parameter: `name=value`, or `name` alone for a bool.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Image<'a> {
        self.params.push(param.into());
        self
    }
}

unsafe extern "C-unwind" {
    /// Runs the functions that were registered with `__cxa_atexit` for this handle. Itanium C++ ABI, 3.3.6.3.
    fn __cxa_finalize(handle: *mut c_void);
}

/// The address of a function of a module whose text is published. Stage *form* guarantees that this is a function:
/// `functions` in `operate/form.rs` accepts only addresses within the module's own text.
pub(crate) type FunctionAddress = Addr;

fn pointer(at: Addr) -> *const () {
    ptr::with_exposed_provenance(index(at.get()))
}

/// Writes a module's state into the module's own `struct module`. The memory exists, because the module is in the
/// registry's book, and the caller holds the lock of the book.
pub(crate) fn write_state(this_module: Addr, state: State) {
    /// The offset of `state` in the SDK's `struct module`: behind `name`.
    const OFFSET: u64 = 56;
    let state = match state {
        State::Live => 0,
        State::Coming => 1,
        State::Going => 2,
        State::Unformed => 3,
    };
    let at = ptr::with_exposed_provenance_mut(index((this_module + OFFSET).get()));
    // SAFETY: the block is aligned to 16 and lies in the module's data, which exists; stage *layout* has reserved the
    // block for this purpose. The module's code only reads the block.
    let word = unsafe { AtomicU32::from_ptr(at) };
    word.store(state, Ordering::Release);
}

/// Calls `int init(void)`.
pub(crate) fn init(at: FunctionAddress) -> Result<i32, Left> {
    // SAFETY: the address lies in published text and is named `init_module`; the caller of `Image::trusted` guarantees
    // the type.
    let init = unsafe { transmute::<*const (), extern "C-unwind" fn() -> c_int>(pointer(at)) };
    boundary::guard(|| init())
}

/// Calls the resolver of an indirect function and returns the address of the chosen function. GNU's ABI extensions,
/// STT_GNU_IFUNC: on x86-64 a resolver has no arguments.
pub(crate) fn resolver(at: FunctionAddress) -> Result<Addr, Left> {
    // SAFETY: the address lies in published text and is the value of an STT_GNU_IFUNC symbol; the caller of
    // `Image::trusted` guarantees the type.
    let resolver = unsafe { transmute::<*const (), extern "C-unwind" fn() -> *const ()>(pointer(at)) };
    boundary::guard(|| Addr::new(wide(resolver().expose_provenance())))
}

/// Calls `void exit(void)`.
pub(crate) fn exit(at: FunctionAddress) -> Result<(), Left> {
    // SAFETY: as in `init`; the function is named `cleanup_module`.
    let exit = unsafe { transmute::<*const (), extern "C-unwind" fn()>(pointer(at)) };
    boundary::guard(|| exit())
}

/// Calls constructors in order, up to the first that throws. Arguments are those of glibc: argc, argv and envp, here
/// empty.
pub(crate) fn constructors(functions: &[FunctionAddress]) -> Result<(), Left> {
    type ConstructorFunction = extern "C-unwind" fn(c_int, *const *const c_char, *const *const c_char);
    let nothing = [ptr::null::<c_char>()];
    for &at in functions {
        // SAFETY: the address lies in published text and is an entry of the module's `.init_array`; the caller of
        // `Image::trusted` guarantees the type. A constructor with fewer arguments ignores the others.
        let constructor = unsafe { transmute::<*const (), ConstructorFunction>(pointer(at)) };
        boundary::guard(|| constructor(0, nothing.as_ptr(), nothing.as_ptr()))?;
    }
    Ok(())
}

/// Calls the functions that the module has registered with `__cxa_atexit`, and then all destructors in order, even
/// after an exception.
pub(crate) fn destructors(functions: &[FunctionAddress], dso_handle: Option<Addr>, mut thrown: impl FnMut(Left)) {
    // Registrations happened after `.init_array` began, so the registered functions run before `.fini_array`.
    if let Some(handle) = dso_handle {
        let handle = pointer(handle).cast_mut().cast();
        // SAFETY: the handle is an address of the module's own data, and only the module's own registrations use this
        // handle.
        let finalized = boundary::guard(|| unsafe { __cxa_finalize(handle) });
        finalized.unwrap_or_else(&mut thrown);
    }
    for &at in functions {
        exit(at).unwrap_or_else(&mut thrown);
    }
}
