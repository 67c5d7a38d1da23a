//! The description of a C++ exception.
//!
//! The place of the exception's type is fixed by the Itanium C++ ABI (exception handling, 2.2.1) and by the structure
//! that libstdc++ and libc++abi put around the exception. The result of `what()` is read with libstdc++'s own
//! functions, which belong to its ABI.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use super::{UnwindException, pass};

/// g++, and clang with libstdc++.
const GNU: u64 = u64::from_be_bytes(*b"GNUCC++\0");
/// clang with libc++.
const CLANG: u64 = u64::from_be_bytes(*b"CLNGC++\0");

/// The distance of the exception's type before the header, in both libraries: ten words of `__cxa_exception`.
const TYPE_BEFORE: usize = 80;

/// `std::type_info`.
#[repr(C)]
struct TypeInfo {
    functions: *const *const c_void,
    name: *const c_char,
}

/// libstdc++'s `type_info::__do_catch(const type_info *thrown, void **object, unsigned outer) const`, and its index
/// among the virtual functions.
type DoCatch = unsafe extern "C-unwind" fn(*const TypeInfo, *const TypeInfo, *mut *mut c_void, u32) -> bool;
const DO_CATCH: usize = 4;

/// `std::exception::what() const`: the third virtual function, after two destructors.
type What = unsafe extern "C-unwind" fn(*const c_void) -> *const c_char;
const WHAT: usize = 2;

type Demangle = unsafe extern "C" fn(*const c_char, *mut c_char, *mut usize, *mut c_int) -> *mut c_char;

/// The longest text that is copied.
const LONGEST: usize = 1024;

/// Returns the type of an exception, and the result of its `what()`.
///
/// # Safety
/// `exception` is a live exception of this class.
pub(super) unsafe fn describe(exception: *mut UnwindException, class: u64) -> (Option<String>, Option<String>) {
    if class != GNU && class != CLANG {
        return (None, None);
    }
    // SAFETY: the bytes before the header are part of the same exception.
    let place = unsafe { exception.byte_sub(TYPE_BEFORE) }.cast::<*const TypeInfo>();
    // SAFETY: the ABI places the pointer to the type there.
    let type_info = unsafe { place.read() };
    // SAFETY: the type belongs to an exception that lives.
    let Some(name) = (unsafe { type_info.as_ref() }).map(|info| info.name).filter(|name| !name.is_null()) else {
        return (None, None);
    };
    // gcc marks the name of a type that no other object knows with an asterisk.
    // SAFETY: a string has at least its terminating NUL.
    let name = if unsafe { name.read() } == c_char::from_ne_bytes([b'*']) { name.wrapping_add(1) } else { name };
    // SAFETY: the object begins behind the header.
    let object = unsafe { exception.add(1) }.cast::<c_void>();
    // SAFETY: a type's name is a string that lives as long as the type.
    let type_name = unsafe { demangled(name) };
    // SAFETY: `object` is an object of this type.
    let what = if class == GNU { unsafe { what(type_info, object) } } else { None };
    (type_name, what)
}

fn process_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: a name that ends with NUL, in the default scope.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// # Safety
/// `name` is the name of a type.
unsafe fn demangled(name: *const c_char) -> Option<String> {
    // SAFETY: the caller passes the name of a type, which is a string.
    let own = unsafe { text(name) }?;
    let demangle = process_symbol(c"__cxa_demangle");
    if demangle.is_null() {
        return Some(own);
    }
    // SAFETY: Itanium C++ ABI, 3.4.
    let demangle = unsafe { std::mem::transmute::<*mut c_void, Demangle>(demangle) };
    let mut status = 0;
    // SAFETY: with no buffer, the function allocates its result by malloc.
    let result = unsafe { demangle(name, ptr::null_mut(), ptr::null_mut(), &raw mut status) };
    // SAFETY: `result` is null, or a string.
    let shown = unsafe { text(result) };
    // SAFETY: `result` is null, or memory from malloc.
    unsafe { libc::free(result.cast()) };
    Some(shown.unwrap_or(own))
}

/// Returns the result of `what()` of a `std::exception`; `None` for any other type.
///
/// # Safety
/// `type_info` and `object` are the type and the object of an exception of libstdc++.
unsafe fn what(type_info: *const TypeInfo, object: *mut c_void) -> Option<String> {
    let base: *const TypeInfo = process_symbol(c"_ZTISt9exception").cast_const().cast();
    // SAFETY: `base` is null, or the type of `std::exception`.
    let functions = unsafe { base.as_ref() }?.functions;
    // SAFETY: libstdc++'s ABI: `type_info` has at least six virtual functions.
    let do_catch = unsafe { functions.wrapping_add(DO_CATCH).read() };
    // SAFETY: the entry is a virtual function with the signature of `DoCatch`.
    let do_catch = unsafe { std::mem::transmute::<*const c_void, DoCatch>(do_catch) };
    let said = Cell::new(None);
    // `what()` is code of the module, which may throw.
    let _ = pass(|| {
        let mut object = object;
        // SAFETY: asks whether `catch (std::exception &)` would catch this type, and makes the pointer that of the
        // base.
        if !unsafe { do_catch(base, type_info, &raw mut object, 1) } {
            return;
        }
        // SAFETY: a `std::exception` begins with the pointer to its virtual functions.
        let functions = unsafe { object.cast::<*const *const c_void>().read() };
        // SAFETY: the table has at least three virtual functions.
        let what = unsafe { functions.wrapping_add(WHAT).read() };
        // SAFETY: the third one has the signature of `What`.
        let what = unsafe { std::mem::transmute::<*const c_void, What>(what) };
        // SAFETY: the object lives.
        let text_at = unsafe { what(object) };
        // SAFETY: `what()` returns a string, or null if its author was careless.
        said.set(unsafe { text(text_at) });
    });
    said.take()
}

/// Returns a C string, escaped, and cut if it is long.
///
/// # Safety
/// `at` is null, or a string.
unsafe fn text(at: *const c_char) -> Option<String> {
    if at.is_null() {
        return None;
    }
    // SAFETY: the caller passes a string, and `at` is not null.
    let bytes = unsafe { CStr::from_ptr(at) }.to_bytes();
    let cut = bytes.get(..LONGEST).unwrap_or(bytes);
    Some(String::from_utf8_lossy(cut).escape_debug().to_string())
}
