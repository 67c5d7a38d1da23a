//! Static calls: `modload/static_call.h` for Rust.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::mem::transmute_copy;
use core::ptr;

/// The key of a static call: `struct static_call_key`. `F` is an `extern "C" fn` type, which has the size of a pointer.
#[repr(C)]
#[derive(Debug)]
pub struct StaticCallKey<F> {
    function: UnsafeCell<F>,
    _reserved: usize,
}

// SAFETY: the module only reads the whole field, volatile. Only the loader writes it, with one store of its size.
unsafe impl<F> Sync for StaticCallKey<F> {}

unsafe extern "C" {
    fn __static_call_update(key: *const (), trampoline: *const (), function: *const ()) -> c_int;
}

impl<F: Copy> StaticCallKey<F> {
    /// Makes a key whose function is `function`.
    pub const fn new(function: F) -> StaticCallKey<F> {
        const { assert!(size_of::<F>() == size_of::<*const ()>()) };
        StaticCallKey { function: UnsafeCell::new(function), _reserved: 0 }
    }

    /// Returns the current function.
    #[inline(always)]
    pub fn function(&self) -> F {
        // SAFETY: the cell is initialised and aligned. The read is volatile because the loader writes the cell.
        unsafe { ptr::read_volatile(self.function.get()) }
    }

    /// Sets the function. It must stay loaded while it is set: use a function of this module, or of a module that this
    /// one uses.
    ///
    /// # Errors
    /// The error number. The function is unchanged then.
    #[inline(always)]
    pub fn update(&'static self, function: F) -> Result<(), i32> {
        // SAFETY: a function pointer is an address, and has the size of a pointer, which `new` has checked.
        let function = unsafe { transmute_copy::<F, *const ()>(&function) };
        // SAFETY: `self` is a key, and the function has its type. The loader finds the trampoline by the key.
        match unsafe { __static_call_update(ptr::from_ref(self).cast(), ptr::null(), function) } {
            0 => Ok(()),
            error => Err(error.wrapping_neg()),
        }
    }
}

/// Defines a static call: its function can be changed, and a call costs a direct call.
///
/// `static_call! { step(n: i32) -> i32 = one; }` defines a module `step` with `step::call(n)` and
/// `step::update(function)`. The function is an `extern "C" fn` of this type. Arguments (at most six) and the result
/// are integers of 32 or 64 bits or pointers, written with Rust's own type names.
#[macro_export]
macro_rules! static_call {
    ($name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $function:ident;) => {
        #[allow(dead_code, reason = "a module need not use both functions")]
        mod $name {
            #[unsafe(export_name = concat!("__SCK__", stringify!($name)))]
            static KEY: $crate::StaticCallKey<extern "C" fn($($type),*) $(-> $result)?> =
                $crate::StaticCallKey::new(super::$function);

            $crate::static_call_trampoline!($name);

            /// Calls the current function.
            #[inline(always)]
            pub(super) fn call($($arg: $type),*) $(-> $result)? {
                $crate::static_call_asm!(@call $name [$($arg)*] $($result)?)
            }

            /// Sets the function. Returns the error number if it was not set.
            #[inline(always)]
            pub(super) fn update(function: extern "C" fn($($type),*) $(-> $result)?) -> Result<(), i32> {
                KEY.update(function)
            }
        }
    };
}
