//! Functions of the C library and of libstdc++ that modules get in another form: those that start or end threads,
//! register a call for the end of a thread, or ask for the owner of an address. Calls from the rest of the process are
//! not affected.
//!
//! | function | difference |
//! |---|---|
//! | `pthread_create`, `thrd_create`, `std::thread`'s start | the new thread knows the module that has created it |
//! | `pthread_exit`, `thrd_exit` | during a call, load or unload by the host, ends this call with an error, and not the thread |
//! | `__cxa_thread_atexit_impl`, `__cxa_thread_atexit` | the module is not freed before the destructor has been called |
//! | `pthread_key_create`, `tss_create` | the module is not freed while a thread has a value, and the key is deleted with it |
//! | `dladdr` | knows modules: name, start of the text, symbol |
//! | `pthread_key_delete`, `tss_delete`, `pthread_setspecific`, `tss_set` | for the same purpose |
//!
//! The calling module is found by the return address or, if the call was a jump, by the function pointer that it
//! passes.
#![expect(unsafe_code, reason = "C callers pass pointers, and the C library is called")]

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::pthread_key_t;
use modload_edit::{Addr, wide};
use modload_loader::Module;
use modload_threads::creation::{self, Creator};
use modload_threads::{boundary, thread_exit};

use crate::c_api;
use crate::x86_64::with_caller;

/// libstdc++'s `std::thread::_M_start_thread(std::unique_ptr<_State>, void (*)())`.
const START_STD_THREAD: &str = "_ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE";

/// A function of the C library or of libstdc++, found when a module was linked to the replacement here.
struct OriginalFunction(AtomicPtr<c_void>);

impl OriginalFunction {
    const fn new() -> OriginalFunction {
        OriginalFunction(AtomicPtr::new(std::ptr::null_mut()))
    }

    fn get(&self) -> *const c_void {
        self.0.load(Ordering::Acquire)
    }
}

static THRD_CREATE: OriginalFunction = OriginalFunction::new();
static STD_THREAD: OriginalFunction = OriginalFunction::new();
static THREAD_ATEXIT: OriginalFunction = OriginalFunction::new();

// Each function continues in another function, with its caller's return address as an additional, last argument.
with_caller!(pthread_create, 5, pthread_create_from);
with_caller!(thrd_create, 4, thrd_create_from);
with_caller!(start_std_thread, 4, start_std_thread_from);
with_caller!(pthread_exit, 2, pthread_exit_from);
with_caller!(thread_atexit, 4, thread_atexit_from);
with_caller!(pthread_key_create, 3, pthread_key_create_from);
with_caller!(tss_create, 3, tss_create_from);
with_caller!(pthread_key_delete, 2, pthread_key_delete_from);
with_caller!(dladdr, 3, dladdr_from);
with_caller!(tss_delete, 2, tss_delete_from);
with_caller!(pthread_setspecific, 3, pthread_setspecific_from);
with_caller!(tss_set, 3, tss_set_from);

/// Returns the address that a module gets for a symbol of the process at `original`: a replacement, or `original`
/// itself.
pub(crate) fn instead_of(name: &[u8], original: Addr) -> Addr {
    let keep = |place: &OriginalFunction| {
        let at = std::ptr::with_exposed_provenance_mut(modload_edit::index(original.get()));
        place.0.store(at, Ordering::Release);
    };
    // A reference may name a symbol version. All versions of these functions behave the same.
    let plain = name.split(|byte| *byte == b'@').next().unwrap_or(name);
    let function: unsafe extern "C-unwind" fn() = match plain {
        b"pthread_create" => pthread_create,
        b"thrd_create" => {
            keep(&THRD_CREATE);
            thrd_create
        }
        b"pthread_exit" | b"thrd_exit" => pthread_exit,
        b"__cxa_thread_atexit_impl" => {
            keep(&THREAD_ATEXIT);
            thread_atexit
        }
        // The function of libstdc++ calls that of the C library.
        b"__cxa_thread_atexit" => match crate::process_symbols::process_symbol(b"__cxa_thread_atexit_impl") {
            Some(at) => return instead_of(b"__cxa_thread_atexit_impl", at),
            None => return original,
        },
        b"dladdr" => dladdr,
        b"pthread_key_create" | b"__pthread_key_create" => pthread_key_create,
        b"tss_create" => tss_create,
        b"pthread_key_delete" => pthread_key_delete,
        b"tss_delete" => tss_delete,
        b"pthread_setspecific" | b"__pthread_setspecific" => pthread_setspecific,
        b"tss_set" => tss_set,
        plain if plain == START_STD_THREAD.as_bytes() => {
            keep(&STD_THREAD);
            start_std_thread
        }
        _ => return original,
    };
    #[expect(clippy::as_conversions, reason = "the only way from a function pointer to its address")]
    let address = function as *const ();
    Addr::new(wide(address.expose_provenance()))
}

fn module_at(at: *const c_void) -> Option<Arc<Module>> {
    c_api::owner(Addr::new(wide(at.expose_provenance()))).map(|(_, module)| module)
}

/// Returns the calling module as a creator of threads: found by the return address, or by a pointer that it passes. If
/// neither is in a module, returns a new creator that belongs to no module.
fn creator(caller: *const c_void, passed: *const c_void) -> Arc<Creator> {
    // The return address may be just after the end of the caller's memory.
    let module = module_at(caller.wrapping_byte_sub(1)).or_else(|| module_at(passed));
    module.map_or_else(|| Arc::new(Creator::new()), |module| module.creator())
}

unsafe extern "C-unwind" fn pthread_create_from(
    thread: *mut c_void,
    attributes: *const c_void,
    first: *const c_void,
    argument: *mut c_void,
    caller: *const c_void,
) -> c_int {
    // SAFETY: the caller fulfils the contract of `pthread_create`.
    unsafe { creation::create(creator(caller, first), thread, attributes, first, argument) }
}

unsafe extern "C-unwind" fn thrd_create_from(
    thread: *mut c_void,
    first: *const c_void,
    argument: *mut c_void,
    caller: *const c_void,
) -> c_int {
    // SAFETY: the caller fulfils the contract of `thrd_create`, which this function implements.
    unsafe { creation::create_c11(creator(caller, first), THRD_CREATE.get(), thread, first, argument) }
}

unsafe extern "C-unwind" fn start_std_thread_from(
    thread: *mut c_void,
    state: *mut *mut c_void,
    depend: *const c_void,
    caller: *const c_void,
) {
    // SAFETY: the caller passes a live state, as libstdc++'s header does.
    let object = unsafe { state.read() };
    // SAFETY: an object with virtual functions begins with a pointer to its table, which the module's compiler has
    // generated.
    let functions = unsafe { object.cast::<*const c_void>().read() };
    let creator = creator(caller, functions);
    // SAFETY: the caller fulfils the contract of this function of libstdc++.
    unsafe { creation::start_std_thread(creator, STD_THREAD.get(), thread, state, depend) };
}

unsafe extern "C-unwind" {
    #[link_name = "pthread_exit"]
    fn end_thread(value: *mut c_void) -> !;
}

unsafe extern "C-unwind" fn pthread_exit_from(value: *mut c_void, _caller: *const c_void) -> ! {
    if boundary::is_beneath() {
        // SAFETY: the caller calls `pthread_exit`, so that its frames allow forced unwinding; a boundary is below them
        // on the stack.
        unsafe { boundary::leave() }
    }
    // SAFETY: the caller fulfils the contract of `pthread_exit`.
    unsafe { end_thread(value) }
}

unsafe extern "C-unwind" fn thread_atexit_from(
    destructor: *const c_void,
    object: *mut c_void,
    handle: *const c_void,
    caller: *const c_void,
) -> c_int {
    let module = module_at(handle).or_else(|| module_at(destructor)).or_else(|| module_at(caller.wrapping_byte_sub(1)));
    let owner = module.map_or(0, |module| module.creator().number());
    // SAFETY: the caller fulfils the contract of `__cxa_thread_atexit_impl`, which this function implements. A module
    // is not freed while one of its destructors is registered.
    unsafe { thread_exit::register(owner, destructor, object, THREAD_ATEXIT.get()) }
}

unsafe extern "C-unwind" fn dladdr_from(at: *const c_void, info: *mut libc::Dl_info, _caller: *const c_void) -> c_int {
    let Some(module) = module_at(at) else {
        // SAFETY: the caller fulfils the contract of `dladdr`.
        return unsafe { libc::dladdr(at, info) };
    };
    let pointer = |at: Addr| std::ptr::with_exposed_provenance_mut::<c_void>(modload_edit::index(at.get()));
    let symbol = module.containing(Addr::new(wide(at.expose_provenance())));
    let found = libc::Dl_info {
        dli_fname: module.c_name().as_ptr(),
        dli_fbase: pointer(module.text_start()),
        dli_sname: symbol.map_or(std::ptr::null(), |(name, _)| name.as_ptr()),
        dli_saddr: symbol.map_or(std::ptr::null_mut(), |(_, start)| pointer(start)),
    };
    // SAFETY: the caller passes a place for the result. The names live as long as the module, as those of libraries do.
    unsafe { info.write(found) };
    1
}

/// Makes a key for the calling module.
unsafe fn create_key(key: *mut pthread_key_t, destructor: *const c_void, caller: *const c_void) -> c_int {
    let module = module_at(caller.wrapping_byte_sub(1)).or_else(|| module_at(destructor));
    let owner = module.map_or(0, |module| module.creator().number());
    // SAFETY: the caller passes a destructor or null. A module is not freed while one of its keys has a value.
    match unsafe { thread_exit::create_key(owner, destructor) } {
        Ok(made) => {
            // SAFETY: the caller passes a place for the key.
            unsafe { key.write(made) };
            0
        }
        Err(failed) => failed,
    }
}

unsafe extern "C-unwind" fn pthread_key_create_from(
    key: *mut pthread_key_t,
    destructor: *const c_void,
    caller: *const c_void,
) -> c_int {
    // SAFETY: the caller fulfils the contract of `pthread_key_create`, which this function implements.
    unsafe { create_key(key, destructor, caller) }
}

/// `thrd_error` of the C library's `<threads.h>`.
const THRD_ERROR: c_int = 2;

/// Returns the result of a function of `<threads.h>` for that of the POSIX function.
fn c11(failed: c_int) -> c_int {
    if failed == 0 { 0 } else { THRD_ERROR }
}

unsafe extern "C-unwind" fn tss_create_from(
    key: *mut pthread_key_t,
    destructor: *const c_void,
    caller: *const c_void,
) -> c_int {
    // SAFETY: the caller fulfils the contract of `tss_create`, which this function implements.
    c11(unsafe { create_key(key, destructor, caller) })
}

unsafe extern "C-unwind" fn pthread_key_delete_from(key: pthread_key_t, _caller: *const c_void) -> c_int {
    thread_exit::delete_key(key)
}

unsafe extern "C-unwind" fn tss_delete_from(key: pthread_key_t, _caller: *const c_void) {
    let _ = thread_exit::delete_key(key);
}

unsafe extern "C-unwind" fn pthread_setspecific_from(
    key: pthread_key_t,
    value: *const c_void,
    _caller: *const c_void,
) -> c_int {
    // SAFETY: the caller fulfils the contract of `pthread_setspecific`, which this function implements.
    unsafe { thread_exit::set_value(key, value) }
}

unsafe extern "C-unwind" fn tss_set_from(key: pthread_key_t, value: *const c_void, _caller: *const c_void) -> c_int {
    // SAFETY: the caller fulfils the contract of `tss_set`, which this function implements.
    c11(unsafe { thread_exit::set_value(key, value) })
}
