//! What there is to say of a C++ exception.
//!
//! Where its type is, is fixed by the Itanium C++ ABI (exception handling, 2.2.1) and by what libstdc++ and libc++abi have put around
//! it; what its `what()` says is asked by libstdc++'s own functions, which belong to its ABI.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use super::{Header, pass};

/// g++, and clang with libstdc++.
const GNU: u64 = u64::from_be_bytes(*b"GNUCC++\0");
/// clang with libc++.
const CLANG: u64 = u64::from_be_bytes(*b"CLNGC++\0");

/// How far before the header both libraries have the exception's type: ten words of `__cxa_exception` lie in between.
const TYPE_BEFORE: usize = 80;

/// `std::type_info`.
#[repr(C)]
struct TypeInfo {
    functions: *const *const c_void,
    name: *const c_char,
}

/// libstdc++'s `type_info::__do_catch(const type_info *thrown, void **object, unsigned outer) const`, and where it is among the virtual
/// functions.
type DoCatch = unsafe extern "C-unwind" fn(*const TypeInfo, *const TypeInfo, *mut *mut c_void, u32) -> bool;
const DO_CATCH: usize = 4;

/// `std::exception::what() const`: behind two destructors.
type What = unsafe extern "C-unwind" fn(*const c_void) -> *const c_char;
const WHAT: usize = 2;

type Demangle = unsafe extern "C" fn(*const c_char, *mut c_char, *mut usize, *mut c_int) -> *mut c_char;

/// The longest text that is taken over.
const LONGEST: usize = 1024;

/// The type of an exception, and what it says of itself.
///
/// # Safety
/// An exception of this class, which lives.
pub(super) unsafe fn describe(exception: *mut Header, class: u64) -> (Option<String>, Option<String>) {
    if class != GNU && class != CLANG {
        return (None, None);
    }
    // SAFETY: what lies before the header is part of the same exception.
    let place = unsafe { exception.byte_sub(TYPE_BEFORE) }.cast::<*const TypeInfo>();
    // SAFETY: as the ABI has it.
    let type_info = unsafe { place.read() };
    // SAFETY: the type of an exception that lives.
    let Some(name) = (unsafe { type_info.as_ref() }).map(|info| info.name).filter(|name| !name.is_null()) else {
        return (None, None);
    };
    // gcc marks so the name of a type that no other object knows.
    // SAFETY: a string has at least its end.
    let name = if unsafe { name.read() } == c_char::from_ne_bytes([b'*']) { name.wrapping_add(1) } else { name };
    // SAFETY: behind the header begins the object.
    let object = unsafe { exception.add(1) }.cast::<c_void>();
    // SAFETY: a type's name is a string that lives as long as the type.
    let type_name = unsafe { demangled(name) };
    // SAFETY: an object of this type.
    let what = if class == GNU { unsafe { what(type_info, object) } } else { None };
    (type_name, what)
}

fn process_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: a name that ends with NUL, in the default scope.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// # Safety
/// The name of a type.
unsafe fn demangled(name: *const c_char) -> Option<String> {
    // SAFETY: the caller's.
    let own = unsafe { text(name) }?;
    let demangle = process_symbol(c"__cxa_demangle");
    if demangle.is_null() {
        return Some(own);
    }
    // SAFETY: Itanium C++ ABI, 3.4.
    let demangle = unsafe { std::mem::transmute::<*mut c_void, Demangle>(demangle) };
    let mut status = 0;
    // SAFETY: with no buffer it allocates its result by malloc.
    let result = unsafe { demangle(name, ptr::null_mut(), ptr::null_mut(), &raw mut status) };
    // SAFETY: null, or a string.
    let shown = unsafe { text(result) };
    // SAFETY: null, or what malloc has given.
    unsafe { libc::free(result.cast()) };
    Some(shown.unwrap_or(own))
}

/// What a `std::exception` says of itself; `None` for anything else.
///
/// # Safety
/// An exception of libstdc++'s: its type, and the object.
unsafe fn what(type_info: *const TypeInfo, object: *mut c_void) -> Option<String> {
    let base: *const TypeInfo = process_symbol(c"_ZTISt9exception").cast_const().cast();
    // SAFETY: null, or the type of `std::exception`.
    let functions = unsafe { base.as_ref() }?.functions;
    // SAFETY: libstdc++'s ABI: `type_info` has at least six virtual functions.
    let do_catch = unsafe { functions.wrapping_add(DO_CATCH).read() };
    // SAFETY: and this is one of them.
    let do_catch = unsafe { std::mem::transmute::<*const c_void, DoCatch>(do_catch) };
    let said = Cell::new(None);
    // It is the module's code that says it, and that may throw.
    let _ = pass(|| {
        let mut object = object;
        // SAFETY: asks whether `catch (std::exception &)` would catch this type, and makes the pointer that of the base.
        if !unsafe { do_catch(base, type_info, &raw mut object, 1) } {
            return;
        }
        // SAFETY: a `std::exception` begins with the pointer to its virtual functions.
        let functions = unsafe { object.cast::<*const *const c_void>().read() };
        // SAFETY: of which there are at least three.
        let what = unsafe { functions.wrapping_add(WHAT).read() };
        // SAFETY: and this is the third.
        let what = unsafe { std::mem::transmute::<*const c_void, What>(what) };
        // SAFETY: the object lives.
        let text_at = unsafe { what(object) };
        // SAFETY: it returns a string, or null if its author was careless.
        said.set(unsafe { text(text_at) });
    });
    said.take()
}

/// A string of C's, escaped, and cut if it is long.
///
/// # Safety
/// Null, or a string.
unsafe fn text(at: *const c_char) -> Option<String> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the caller's.
    let bytes = unsafe { CStr::from_ptr(at) }.to_bytes();
    let cut = bytes.get(..LONGEST).unwrap_or(bytes);
    Some(String::from_utf8_lossy(cut).escape_debug().to_string())
}
