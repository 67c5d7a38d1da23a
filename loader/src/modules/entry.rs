//! The one file of this crate with unsafe code: the promise that an image may run, and the calls that rely on it.
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

/// Bytes of a module whose author is trusted, with the name and the parameters it is to be loaded with.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    pub(crate) inputs: Vec<Input<'a>>,
    pub(crate) wanted: Vec<String>,
    pub(crate) stem: String,
    pub(crate) params: Vec<String>,
}

impl<'a> Image<'a> {
    /// An image that may be loaded and run: a relocatable object or a static archive.
    ///
    /// # Safety
    /// Loading runs the module's code in this process, and its code can do anything. Whoever calls this vouches for
    /// it: that its relocations and tables say what its compiler meant, that its functions keep to the C ABI and leave
    /// the host's memory alone (they may throw: what leaves `init` fails the load); and that nobody calls them, by an
    /// address that was kept, when the module goes or has gone. Threads that are in its code then are found by their
    /// stacks, but not a coroutine that is suspended in it on a stack of its own.
    #[must_use]
    pub unsafe fn trusted(bytes: impl Into<Cow<'a, [u8]>>) -> Image<'a> {
        let input = Input { name: String::new(), bytes: bytes.into() };
        // SAFETY: the caller's.
        unsafe { Image::trusted_unit(vec![input]) }
    }

    /// An image of several objects and archives, which become one module: their local symbols stay apart, their global
    /// ones are one another's, and what they export they export together. Of an archive those members are taken that
    /// define what is undefined when it is its turn; if there is nothing but archives, those that define
    /// `init_module`, `cleanup_module` or what is [wanted](Image::want), or all of them if none does.
    ///
    /// # Safety
    /// As for [`Image::trusted`].
    #[must_use]
    pub unsafe fn trusted_unit(inputs: Vec<Input<'a>>) -> Image<'a> {
        Image { inputs, wanted: Vec::new(), stem: "module".into(), params: Vec::new() }
    }

    /// A symbol for whose sake members of archives are taken: GNU ld's `--undefined`.
    #[must_use]
    pub fn want(mut self, symbol: impl Into<String>) -> Image<'a> {
        self.wanted.push(symbol.into());
        self
    }

    /// The name it gets if its `.modinfo` has none: its file's stem, as a rule.
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
    /// Runs what was registered with `__cxa_atexit` for this handle. Itanium C++ ABI, 3.3.6.3.
    fn __cxa_finalize(handle: *mut c_void);
}

/// The address of a function of a module whose text is published. That it is one follows from where it is made:
/// [`crate::operate::form::functions`] takes only addresses within the module's own text.
pub(crate) type Entry = Addr;

fn pointer(at: Addr) -> *const () {
    ptr::with_exposed_provenance(index(at.get()))
}

/// Writes a module's state where its own `struct module` has it. The module's memory is there: it is in the registry's book, which
/// the caller has in hand.
pub(crate) fn write_state(this_module: Addr, state: State) {
    /// Behind the name.
    const OFFSET: u64 = 56;
    let state = match state {
        State::Live => 0,
        State::Coming => 1,
        State::Going => 2,
        State::Unformed => 3,
    };
    let at = ptr::with_exposed_provenance_mut(index((this_module + OFFSET).get()));
    // SAFETY: the block is aligned to 16 and lies in the module's data, which is there and which nobody takes for anything else:
    // stage *layout* has put it there. The module's code only reads it.
    let word = unsafe { AtomicU32::from_ptr(at) };
    word.store(state, Ordering::Release);
}

/// Calls `int init(void)`.
pub(crate) fn init(at: Entry) -> Result<i32, Left> {
    // SAFETY: the address lies in published text and is named `init_module`; `Image::trusted` vouches for its type.
    let init = unsafe { transmute::<*const (), extern "C-unwind" fn() -> c_int>(pointer(at)) };
    boundary::guard(|| init())
}

/// Calls the resolver of an indirect function; returns the address of the function that it picks. GNU's ABI extensions,
/// STT_GNU_IFUNC: on x86-64 a resolver has no arguments.
pub(crate) fn resolver(at: Entry) -> Result<Addr, Left> {
    // SAFETY: the address lies in published text and is the value of an STT_GNU_IFUNC symbol; `Image::trusted` vouches
    // for its type.
    let resolver = unsafe { transmute::<*const (), extern "C-unwind" fn() -> *const ()>(pointer(at)) };
    boundary::guard(|| Addr::new(wide(resolver().expose_provenance())))
}

/// Calls `void exit(void)`.
pub(crate) fn exit(at: Entry) -> Result<(), Left> {
    // SAFETY: as in `init`; it is named `cleanup_module`.
    let exit = unsafe { transmute::<*const (), extern "C-unwind" fn()>(pointer(at)) };
    boundary::guard(|| exit())
}

/// Calls constructors in order, up to the first that throws. They get what glibc gives: argc, argv and envp, here of
/// nothing.
pub(crate) fn constructors(functions: &[Entry]) -> Result<(), Left> {
    type Constructor = extern "C-unwind" fn(c_int, *const *const c_char, *const *const c_char);
    let nothing = [ptr::null::<c_char>()];
    for &at in functions {
        // SAFETY: the address lies in published text and stands in the module's `.init_array`; `Image::trusted`
        // vouches for its type. One that takes fewer arguments does not look at them.
        let constructor = unsafe { transmute::<*const (), Constructor>(pointer(at)) };
        boundary::guard(|| constructor(0, nothing.as_ptr(), nothing.as_ptr()))?;
    }
    Ok(())
}

/// Calls what the module registered with `__cxa_atexit`, and then destructors in order: all of them, whatever they throw.
pub(crate) fn destructors(functions: &[Entry], dso_handle: Option<Addr>, mut thrown: impl FnMut(Left)) {
    // The other way round than `__cxa_atexit` would have it: what it registered came after `.init_array` began, so it
    // goes before `.fini_array`.
    if let Some(handle) = dso_handle {
        let handle = pointer(handle).cast_mut().cast();
        // SAFETY: the handle is an address of the module's own data, which only its own registrations carry.
        let finalized = boundary::guard(|| unsafe { __cxa_finalize(handle) });
        finalized.unwrap_or_else(&mut thrown);
    }
    for &at in functions {
        exit(at).unwrap_or_else(&mut thrown);
    }
}
