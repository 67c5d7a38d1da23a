//! Destructors that run when a thread ends, and the owner of each.
//!
//! A module registers destructors of its thread-local variables with the C library's `__cxa_thread_atexit_impl`. The C
//! library does not know modules, and would call a destructor whose code is gone. So each destructor is registered with
//! an owner's number, and [`open`] returns the threads that still have destructors of an owner. Each destructor has one
//! real registration, so the C library still determines the order among all destructors of a thread.
//!
//! The other kind of destructors belongs to keys (`pthread_key_create`): a thread calls a key's destructor at its end if
//! it has a value other than null. A key that is [made here](create_key) is a real key without a destructor, so
//! `pthread_getspecific` finds its values. One more key of this module has a destructor, which calls those of all such
//! keys: after the thread's `__cxa_thread_atexit_impl` ones, like any key's, and in the order in which the keys were
//! made. POSIX leaves the order among keys open.

mod keys;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::task::Tid;
use keys::Keys;

pub use keys::{create_key, delete_key, set_value};

type Destructor = unsafe extern "C-unwind" fn(*mut c_void);
type Register = unsafe extern "C" fn(Destructor, *mut c_void, *mut c_void) -> c_int;

/// A registered destructor. Belongs to its thread.
struct ThreadExitDestructor {
    owner: u64,
    /// The destructor; `None` once it has been called, or if it was registered as null.
    destructor: Option<Destructor>,
    object: *mut c_void,
    /// The registration that this thread made before this one.
    before: *mut ThreadExitDestructor,
}

thread_local! {
    /// The last registration of this thread that the C library has not called yet.
    static LAST: Cell<*mut ThreadExitDestructor> = const { Cell::new(ptr::null_mut()) };
}

/// The number of destructors of an owner that a thread has to call.
struct Open {
    owner: u64,
    tid: Tid,
    count: usize,
}

/// All that this module knows of the process's threads.
struct OpenDestructors {
    /// Without entries of count 0.
    registered: Vec<Open>,
    keys: Keys,
}

/// The lock is never held while foreign code runs.
static OPEN: Mutex<OpenDestructors> = Mutex::new(OpenDestructors { registered: Vec::new(), keys: Keys::new() });

fn all() -> MutexGuard<'static, OpenDestructors> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(owner: u64) {
    let tid = Tid::current();
    let open = &mut all().registered;
    match open.iter_mut().find(|open| open.owner == owner && open.tid == tid) {
        Some(open) => open.count += 1,
        None => open.push(Open { owner, tid, count: 1 }),
    }
}

fn take_away(owner: u64) {
    let tid = Tid::current();
    let open = &mut all().registered;
    if let Some(at) = open.iter().position(|open| open.owner == owner && open.tid == tid) {
        open[at].count -= 1;
        if open[at].count == 0 {
            open.swap_remove(at);
        }
    }
}

unsafe extern "C" {
    /// The handle of the program or library that contains this code: the C library keeps it loaded while its
    /// destructors are registered.
    static __dso_handle: u8;
}

/// Registers a destructor that this thread calls with `object` at its end. `register` is the C library's
/// `__cxa_thread_atexit_impl`; this function returns its result.
///
/// # Safety
/// The destructor can be called with this object in this thread for as long as [`open`] lists the owner, and `register`
/// is the function named above.
pub unsafe fn register(owner: u64, destructor: *const c_void, object: *mut c_void, register: *const c_void) -> c_int {
    // SAFETY: the caller guarantees that `register` is `__cxa_thread_atexit_impl`.
    let register = unsafe { std::mem::transmute::<*const c_void, Register>(register) };
    // SAFETY: the caller guarantees that the pointer is a destructor. A null one is not called.
    let destructor = unsafe { std::mem::transmute::<*const c_void, Option<Destructor>>(destructor) };
    let node = Box::into_raw(Box::new(ThreadExitDestructor { owner, destructor, object, before: LAST.get() }));
    // The count comes before the C library's registration: from here on the owner stays.
    add(owner);
    let handle = (&raw const __dso_handle).cast_mut().cast();
    // SAFETY: `call` takes the node, once; the handle is this code's own.
    let failed = unsafe { register(call, node.cast(), handle) };
    if failed == 0 {
        LAST.set(node);
    } else {
        take_away(owner);
        // SAFETY: the box was made above, and the C library does not have it.
        drop(unsafe { Box::from_raw(node) });
    }
    failed
}

/// The function that the C library calls for each registration, the last one first.
unsafe extern "C-unwind" fn call(node: *mut c_void) {
    let node: *mut ThreadExitDestructor = node.cast();
    // SAFETY: the C library calls this function once for each registration, in its thread.
    let ThreadExitDestructor { owner, destructor, object, before } = *unsafe { Box::from_raw(node) };
    LAST.set(before);
    if let Some(destructor) = destructor {
        // SAFETY: the owner's code is present, because the owner is still listed.
        unsafe { destructor(object) };
        take_away(owner);
    }
}

/// Calls the destructors that this thread has registered for an owner and not called yet, the last one first, and those
/// of the owner's keys for which this thread has values. Returns when none is left, or when destructors of keys have set
/// values as often as the C library permits. `guarded` must call its argument, and must return if the argument throws.
pub fn call_own(owner: u64, mut guarded: impl FnMut(&mut dyn FnMut())) {
    call_registered(owner, &mut guarded);
    for _ in 0..keys::ROUNDS {
        if !keys::call_own(Some(owner), &mut guarded) {
            return;
        }
        call_registered(owner, &mut guarded);
    }
}

fn call_registered(owner: u64, guarded: &mut impl FnMut(&mut dyn FnMut())) {
    loop {
        let mut node = LAST.get();
        let destructor = loop {
            // SAFETY: null, or a node of this thread, which lives until the C library has called it.
            let Some(registered) = (unsafe { node.as_mut() }) else { return };
            if registered.owner == owner
                && let Some(destructor) = registered.destructor.take()
            {
                break (destructor, registered.object);
            }
            node = registered.before;
        };
        let (destructor, object) = destructor;
        // SAFETY: the owner's code is present, because the owner is still listed.
        guarded(&mut || unsafe { destructor(object) });
        take_away(owner);
    }
}

/// Returns the threads that have destructors of an owner to call, and the number for each. Leaves out threads that have
/// ended without calling them (by the exit system call, or in the parent of a fork).
#[must_use]
pub fn open(owner: u64) -> Vec<(Tid, usize)> {
    let is_there = |tid| !matches!(crate::task::status(tid), Ok(None));
    let mut open = all();
    open.registered.retain(|open| is_there(open.tid));
    open.keys.retain_threads(is_there);
    let registered = open.registered.iter().filter(|open| open.owner == owner).map(|open| (open.tid, open.count));
    let mut found: Vec<_> = registered.collect();
    for tid in open.keys.threads_of(owner) {
        match found.iter_mut().find(|(thread, _)| *thread == tid) {
            Some((_, count)) => *count += 1,
            None => found.push((tid, 1)),
        }
    }
    found
}

/// Deletes the keys of an owner that is gone. Their destructors are not called any more.
pub(crate) fn forget(owner: u64) {
    let deleted = all().keys.take_owned(owner);
    deleted.into_iter().for_each(keys::delete_real);
}

thread_local! {
    /// The lock and the thread's id, while this thread forks.
    static FORKS: Cell<Option<(MutexGuard<'static, OpenDestructors>, Tid)>> = const { Cell::new(None) };
}

/// Takes the lock before a fork.
pub(crate) fn before_fork() {
    FORKS.set(Some((all(), Tid::current())));
}

/// Releases the lock after a fork, in the parent.
pub(crate) fn after_fork_in_parent() {
    FORKS.set(None);
}

/// Updates the list after a fork, in the child: the child has only the forking thread, under another id, with its
/// destructors.
pub(crate) fn after_fork_in_child() {
    if let Some((mut open, before)) = FORKS.take() {
        open.registered.retain(|open| open.tid == before);
        open.registered.iter_mut().for_each(|open| open.tid = Tid::current());
        open.keys.retain_threads(|tid| tid == before);
        open.keys.rename_threads(Tid::current());
    }
}
