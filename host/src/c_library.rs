//! Functions of the C library and of libstdc++ that modules get in their place: those by which a module starts or ends threads, or
//! has something called at a thread's end. The process's own calls of them are not concerned.
//!
//! | function | what is different |
//! |---|---|
//! | `pthread_create`, `thrd_create`, `std::thread`'s start | the new thread knows which module has created it |
//! | `pthread_exit`, `thrd_exit` | in a call, a load or an unload by the host it ends that, with an error, and not the thread |
//! | `__cxa_thread_atexit_impl`, `__cxa_thread_atexit` | the module stays until the destructor was called |
//!
//! Which module calls is known by the return address, or, where the call was a jump, by the function that is passed.
#![expect(unsafe_code, reason = "C callers pass pointers, and what they call is the C library's")]

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use modload_edit::{Addr, wide};
use modload_loader::Module;
use modload_threads::creation::{self, Creator};
use modload_threads::{boundary, thread_exit};

use crate::c_api;

/// libstdc++'s `std::thread::_M_start_thread(std::unique_ptr<_State>, void (*)())`.
const START_STD_THREAD: &str = "_ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE";

/// A function of another's, as it was found when a module was linked to ours.
struct Original(AtomicPtr<c_void>);

impl Original {
    const fn new() -> Original {
        Original(AtomicPtr::new(std::ptr::null_mut()))
    }

    fn get(&self) -> *const c_void {
        self.0.load(Ordering::Acquire)
    }
}

static THRD_CREATE: Original = Original::new();
static STD_THREAD: Original = Original::new();
static THREAD_ATEXIT: Original = Original::new();

/// A function that goes on in another one, with its caller's return address as one argument more.
macro_rules! with_caller {
    ($name:ident, $register:literal, $next:ident) => {
        #[unsafe(naked)]
        unsafe extern "C-unwind" fn $name() {
            std::arch::naked_asm!(
                concat!("mov ", $register, ", [rsp]"),
                "jmp {next}",
                next = sym $next,
            )
        }
    };
}

with_caller!(pthread_create, "r8", pthread_create_from);
with_caller!(thrd_create, "rcx", thrd_create_from);
with_caller!(start_std_thread, "rcx", start_std_thread_from);
with_caller!(pthread_exit, "rsi", pthread_exit_from);
with_caller!(thread_atexit, "rcx", thread_atexit_from);

/// What a module gets in place of a symbol of the process's, which is at `original`; `original` itself if nothing.
pub(crate) fn instead_of(name: &[u8], original: Addr) -> Addr {
    let keep = |place: &Original| {
        let at = std::ptr::with_exposed_provenance_mut(modload_edit::index(original.get()));
        place.0.store(at, Ordering::Release);
    };
    // A reference may name a version: all versions of these functions do the same.
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
        // libstdc++'s passes on to the C library's.
        b"__cxa_thread_atexit" => match crate::process_symbols::process_symbol(b"__cxa_thread_atexit_impl") {
            Some(at) => return instead_of(b"__cxa_thread_atexit_impl", at),
            None => return original,
        },
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

/// The module that calls, as a creator of threads: by the return address, or else by something of its own that it passes. One that is
/// neither's is nothing that a module's number stands for.
fn creator(caller: *const c_void, passed: *const c_void) -> Arc<Creator> {
    // A return address may be behind the last instruction of the caller's memory.
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
    // SAFETY: the caller's, who calls `pthread_create`.
    unsafe { creation::create(creator(caller, first), thread, attributes, first, argument) }
}

unsafe extern "C-unwind" fn thrd_create_from(
    thread: *mut c_void,
    first: *const c_void,
    argument: *mut c_void,
    caller: *const c_void,
) -> c_int {
    // SAFETY: the caller's, who calls `thrd_create`, which this is.
    unsafe { creation::create_c11(creator(caller, first), THRD_CREATE.get(), thread, first, argument) }
}

unsafe extern "C-unwind" fn start_std_thread_from(
    thread: *mut c_void,
    state: *mut *mut c_void,
    depend: *const c_void,
    caller: *const c_void,
) {
    // SAFETY: the caller passes a state that lives, as libstdc++'s header does.
    let object = unsafe { state.read() };
    // SAFETY: an object with virtual functions begins with a pointer to them, which the module has compiled.
    let functions = unsafe { object.cast::<*const c_void>().read() };
    let creator = creator(caller, functions);
    // SAFETY: the caller's, who calls this function of libstdc++'s.
    unsafe { creation::start_std_thread(creator, STD_THREAD.get(), thread, state, depend) };
}

unsafe extern "C-unwind" {
    #[link_name = "pthread_exit"]
    fn end_thread(value: *mut c_void) -> !;
}

unsafe extern "C-unwind" fn pthread_exit_from(value: *mut c_void, _caller: *const c_void) -> ! {
    if boundary::is_beneath() {
        // SAFETY: the caller calls `pthread_exit`, so that its frames may be unwound by force; a boundary is beneath.
        unsafe { boundary::leave() }
    }
    // SAFETY: the caller's.
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
    // SAFETY: the caller's, who calls `__cxa_thread_atexit_impl`, which this is. A module is not freed while it has any.
    unsafe { thread_exit::register(owner, destructor, object, THREAD_ATEXIT.get()) }
}
