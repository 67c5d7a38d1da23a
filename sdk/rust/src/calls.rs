//! Static calls: `modload/static_call.h` for Rust.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::mem::transmute_copy;
use core::ptr;

/// The key of a static call: `struct static_call_key`. `F` is an `extern "C" fn` type, whose size is a pointer's.
#[repr(C)]
#[derive(Debug)]
pub struct StaticCallKey<F> {
    function: UnsafeCell<F>,
    _reserved: usize,
}

// SAFETY: the module only reads it, as a whole and volatile; who writes it is the loader, with one store of its size.
unsafe impl<F> Sync for StaticCallKey<F> {}

unsafe extern "C" {
    fn __static_call_update(key: *const (), trampoline: *const (), function: *const ()) -> c_int;
}

impl<F: Copy> StaticCallKey<F> {
    /// A key that calls this function.
    pub const fn new(function: F) -> StaticCallKey<F> {
        const { assert!(size_of::<F>() == size_of::<*const ()>()) };
        StaticCallKey { function: UnsafeCell::new(function), _reserved: 0 }
    }

    /// What it calls.
    #[inline(always)]
    pub fn function(&self) -> F {
        // SAFETY: the cell is initialised and aligned; volatile, because the loader writes it.
        unsafe { ptr::read_volatile(self.function.get()) }
    }

    /// Has it call another function, which stays for as long as it is called: one of this module, or of one that this
    /// one uses.
    ///
    /// # Errors
    /// The error number; it calls what it called before.
    #[inline(always)]
    pub fn update(&'static self, function: F) -> Result<(), i32> {
        // SAFETY: a function pointer is an address, and the size is a pointer's: `new` has looked.
        let function = unsafe { transmute_copy::<F, *const ()>(&function) };
        // SAFETY: the key is one, and the function has its type. The loader finds the trampoline by the key.
        match unsafe { __static_call_update(ptr::from_ref(self).cast(), ptr::null(), function) } {
            0 => Ok(()),
            error => Err(error.wrapping_neg()),
        }
    }
}

/// Defines a static call: what it calls can be changed, and costs a direct call.
///
/// `static_call! { step(n: i32) -> i32 = one; }` makes a module `step` with `step::call(n)` and
/// `step::update(function)`. Its function is an `extern "C" fn` of that type. Arguments (six at most) and the result are
/// integers of 32 or 64 bits or pointers, whose types are those that the language itself names.
#[macro_export]
macro_rules! static_call {
    ($name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $function:ident;) => {
        #[allow(dead_code, reason = "whether both are used is for the module to say")]
        mod $name {
            #[unsafe(export_name = concat!("__SCK__", stringify!($name)))]
            static KEY: $crate::StaticCallKey<extern "C" fn($($type),*) $(-> $result)?> =
                $crate::StaticCallKey::new(super::$function);

            // A trampoline, which returns until the loader makes it lead where the key says.
            ::core::arch::global_asm!(
                ".pushsection .modload.static_calls, \"\", @progbits",
                ".popsection",
                ".pushsection .static_call.text, \"ax\", @progbits",
                ".balign 8",
                concat!(".globl __SCT__", stringify!($name)),
                concat!(".hidden __SCT__", stringify!($name)),
                concat!(".type __SCT__", stringify!($name), ", @function"),
                concat!("__SCT__", stringify!($name), ":"),
                ".cfi_startproc",
                ".byte 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 0xb9, 0xcc",
                ".cfi_endproc",
                concat!(".size __SCT__", stringify!($name), ", . - __SCT__", stringify!($name)),
                ".popsection",
            );

            /// Calls it.
            #[inline(always)]
            pub(super) fn call($($arg: $type),*) $(-> $result)? {
                $crate::static_call_asm!($name [] [$($arg)*] ["rdi" "rsi" "rdx" "rcx" "r8" "r9"] $($result)?)
            }

            /// Has it call another function; the error number if it does not.
            #[inline(always)]
            pub(super) fn update(function: extern "C" fn($($type),*) $(-> $result)?) -> Result<(), i32> {
                KEY.update(function)
            }
        }
    };
}

/// The call itself: each argument in its register, as the C ABI wants it.
#[doc(hidden)]
#[macro_export]
macro_rules! static_call_asm {
    ($name:ident [$($in:tt)*] [$arg:ident $($args:ident)*] [$register:tt $($registers:tt)*] $($result:ty)?) => {
        $crate::static_call_asm!($name [$($in)* in($register) $arg,] [$($args)*] [$($registers)*] $($result)?)
    };
    ($name:ident [$($in:tt)*] [] [$($registers:tt)*] $result:ty) => {{
        let result: $result;
        // SAFETY: a call of a function of this type, by the C ABI: what it may change is said.
        unsafe {
            ::core::arch::asm!(
                concat!("call __SCT__", stringify!($name)),
                $($in)*
                lateout("rax") result,
                clobber_abi("C"),
            );
        }
        result
    }};
    ($name:ident [$($in:tt)*] [] [$($registers:tt)*]) => {
        // SAFETY: as above.
        unsafe {
            ::core::arch::asm!(concat!("call __SCT__", stringify!($name)), $($in)* clobber_abi("C"));
        }
    };
}
