//! The SDK for modules in Rust: the counterpart of `modload/module.h`. It does not use the standard library.
//!
//! ```no_run
//! #![no_std]
//! # // The test compiles a program, with the panic handler of the standard library. Only the loader can link it.
//! # extern crate std;
//! # fn main() {}
//! use modload_module::module;
//!
//! module! {
//!     name: "answer",
//!     license: "Dual MIT/GPL",
//!     description: "Answers",
//!     init: init,
//!     params: { times: i32 = 1, 0o644, "how often"; },
//!     exports: [answer],
//! }
//!
//! fn init() -> Result<(), i32> {
//!     if times.get() < 0 { Err(modload_module::EINVAL) } else { Ok(()) }
//! }
//!
//! extern "C" fn answer() -> i32 {
//!     42 * times.get()
//! }
//! ```
//!
//! - [`module!`]: declares the module. Use it once, at the top of the crate.
//! - [`ParamVariable`]: the variable of a parameter. Types: bool, u8, i16, u16, i32, u32, i64, u64.
//! - [`StaticKey`], [`static_branch_likely!`], [`static_branch_unlikely!`]: branches that cost a NOP.
//! - [`static_call!`]: calls of a changeable function that cost a direct call.
//! - Error numbers that `init` may return: [`EINVAL`] and its neighbours.
//!
//! A module is one object: `rustc --crate-type=lib --emit=obj -Cpanic=abort -Copt-level=2 -Ccodegen-units=1`. Its code
//! must not panic, because the functions that a panic calls are not defined; the loader names them as unresolved
//! symbols. All functions of this crate are inlined, so the object holds only the parts that the module uses.

#![no_std]

mod calls;
mod keys;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use calls::StaticCallKey;
pub use keys::StaticKey;

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int};
use core::ptr;

/// `struct module` of the C SDK.
#[repr(C)]
#[derive(Debug)]
pub struct ThisModule {
    name: [c_char; 56],
    /// The state. The loader writes it whenever it changes.
    state: UnsafeCell<c_int>,
}

// SAFETY: the loader writes `state` while other threads may read it, but no code reads it through this type.
unsafe impl Sync for ThisModule {}

/// The operations of a parameter type. Only the address is used.
#[repr(C)]
#[derive(Debug)]
pub struct ParamOps {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    /// The module's own `struct module`. The loader provides it.
    pub safe static __this_module: ThisModule;
    safe static param_ops_bool: ParamOps;
    safe static param_ops_byte: ParamOps;
    safe static param_ops_short: ParamOps;
    safe static param_ops_ushort: ParamOps;
    safe static param_ops_int: ParamOps;
    safe static param_ops_uint: ParamOps;
    safe static param_ops_long: ParamOps;
    safe static param_ops_ulong: ParamOps;
}

/// Out of memory.
pub const ENOMEM: i32 = 12;
/// The module is in use.
pub const EBUSY: i32 = 16;
/// There is no such device.
pub const ENODEV: i32 = 19;
/// An argument is not valid.
pub const EINVAL: i32 = 22;

mod sealed {
    /// Keeps other crates from implementing [`ParamKind`](crate::ParamType).
    pub trait Sealed {}
}

/// A type that a parameter may have.
pub trait ParamKind: sealed::Sealed + Copy {
    /// The name of the type, as in `module_param(name, type, perm)`.
    const NAME: &'static str;
    /// The operations of the type.
    const OPS: *const ParamOps;
}

macro_rules! param_types {
    ($($kind:ty, $name:literal, $ops:ident;)*) => {
        $(
            impl sealed::Sealed for $kind {}
            impl ParamKind for $kind {
                const NAME: &'static str = $name;
                const OPS: *const ParamOps = &raw const $ops;
            }
        )*
    };
}

param_types! {
    bool, "bool", param_ops_bool;
    u8, "byte", param_ops_byte;
    i16, "short", param_ops_short;
    u16, "ushort", param_ops_ushort;
    i32, "int", param_ops_int;
    u32, "uint", param_ops_uint;
    i64, "long", param_ops_long;
    u64, "ulong", param_ops_ulong;
}

/// The variable of a parameter. The loader stores the value before `init` runs, and again when the parameter is set
/// later.
#[repr(transparent)]
#[derive(Debug)]
pub struct ParamVariable<T>(UnsafeCell<T>);

// SAFETY: the module only reads the whole value, volatile. Only the loader writes it, with one store of its size.
unsafe impl<T: ParamKind> Sync for ParamVariable<T> {}

impl<T: ParamKind> ParamVariable<T> {
    /// Makes a variable with this default value.
    pub const fn new(value: T) -> ParamVariable<T> {
        ParamVariable(UnsafeCell::new(value))
    }

    /// Returns the current value.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the cell is initialised and aligned. The read is volatile because the loader writes the cell.
        unsafe { ptr::read_volatile(self.0.get()) }
    }
}

/// A record of `__param`: Linux's `struct kernel_param`.
#[repr(C)]
#[derive(Debug)]
pub struct ParamRecord {
    name: *const u8,
    module: *const ThisModule,
    ops: *const ParamOps,
    perm: u16,
    level: i8,
    flags: u8,
    arg: *const (),
}

// SAFETY: the record is never written. Only the loader compares and follows its pointers.
unsafe impl Sync for ParamRecord {}

impl ParamRecord {
    /// Makes the record of a parameter. `name` must end with a NUL.
    pub const fn new<T: ParamKind>(name: &'static str, perm: u16, value: &'static ParamVariable<T>) -> ParamRecord {
        let (name, arg) = (name.as_ptr(), ptr::from_ref(value).cast());
        ParamRecord { name, module: &raw const __this_module, ops: T::OPS, perm, level: -1, flags: 0, arg }
    }
}

/// Converts text to bytes, for a section that holds only text.
#[must_use]
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(text.as_bytes());
    bytes
}

/// Converts the result of `init` to the number that C code returns.
#[must_use]
#[inline(always)]
pub fn status(result: Result<(), i32>) -> c_int {
    result.map_or_else(i32::wrapping_neg, |()| 0)
}

/// Adds a `key=value` entry to `.modinfo`.
#[doc(hidden)]
#[macro_export]
macro_rules! modinfo {
    ($($text:expr),*) => {
        const _: () = {
            const TEXT: &str = concat!($($text),*, "\0");
            #[used]
            #[unsafe(link_section = ".modinfo")]
            static INFO: [u8; TEXT.len()] = $crate::bytes(TEXT);
        };
    };
}

/// Declares a module: its name and licence and, as needed and in this order, author, description, version, init (`fn()
/// -> Result<(), i32>`), exit (`fn()`), parameters (`name: type = value, permissions, "description";`) and exports
/// (names of `extern "C"` functions).
#[macro_export]
macro_rules! module {
    (
        name: $name:literal,
        license: $license:literal,
        $(author: $author:literal,)?
        $(description: $description:literal,)?
        $(version: $version:literal,)?
        $(init: $init:path,)?
        $(exit: $exit:path,)?
        $(params: { $($param:ident: $kind:ident = $default:expr, $perm:literal, $about:literal;)* },)?
        $(exports: [$($export:ident),* $(,)?],)?
    ) => {
        $crate::modinfo!("name=", $name);
        $crate::modinfo!("license=", $license);
        $($crate::modinfo!("author=", $author);)?
        $($crate::modinfo!("description=", $description);)?
        $($crate::modinfo!("version=", $version);)?
        $(
            #[unsafe(no_mangle)]
            extern "C" fn init_module() -> ::core::ffi::c_int {
                $crate::status($init())
            }
        )?
        $(
            #[unsafe(no_mangle)]
            extern "C" fn cleanup_module() {
                $exit();
            }
        )?
        $($(
            #[allow(non_upper_case_globals, reason = "the static has the name that users write")]
            static $param: $crate::ParamVariable<$kind> = $crate::ParamVariable::new($default);
            const _: () = {
                #[used]
                #[unsafe(link_section = "__param")]
                static RECORD: $crate::ParamRecord =
                    $crate::ParamRecord::new(concat!(stringify!($param), "\0"), $perm, &$param);
            };
            $crate::param_info!($param, $kind);
            $crate::modinfo!("parm=", stringify!($param), ":", $about);
        )*)?
        $($(
            ::core::arch::global_asm!(
                ".pushsection __ksymtab_strings,\"a\",@progbits",
                concat!("770: .asciz \"", stringify!($export), "\""),
                ".popsection",
                ".pushsection __ksymtab,\"a\",@progbits",
                ".balign 4",
                ".long {symbol} - .",
                ".long 770b - .",
                ".long 0",
                ".popsection",
                symbol = sym $export,
            );
        )*)?
    };
}

/// Writes `parmtype=` with the C name of the type.
#[doc(hidden)]
#[macro_export]
macro_rules! param_info {
    ($param:ident, bool) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":bool");
    };
    ($param:ident, u8) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":byte");
    };
    ($param:ident, i16) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":short");
    };
    ($param:ident, u16) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":ushort");
    };
    ($param:ident, i32) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":int");
    };
    ($param:ident, u32) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":uint");
    };
    ($param:ident, i64) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":long");
    };
    ($param:ident, u64) => {
        $crate::modinfo!("parmtype=", stringify!($param), ":ulong");
    };
}
