//! Shadow variables: data that belongs to `<obj, id>`, for all modules of the process. Linux's
//! `kernel/livepatch/shadow.c`, and Documentation/livepatch/shadow-vars.rst.
//!
//! No lock is held while a constructor or a destructor runs. A constructor runs once for a variable. Other threads that
//! allocate the same variable wait until the constructor has returned, and no thread can get the variable before.
//! Variables that are not freed stay until the process ends, as in Linux they stay.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};

use modload_text::on_fork;

use crate::structs::{ShadowConstructor, ShadowData, ShadowDestructor};

/// An object's address and a number.
type Key = (usize, u64);

#[derive(Debug)]
enum Variable {
    /// The variable's constructor runs in this thread.
    UnderConstruction(ThreadId),
    Ready(ShadowData),
}

type Variables = BTreeMap<Key, Variable>;

static VARIABLES: Mutex<Variables> = Mutex::new(BTreeMap::new());
/// Signalled when a constructor has returned.
static CONSTRUCTED: Condvar = Condvar::new();

thread_local! {
    static HELD: RefCell<Option<MutexGuard<'static, Variables>>> = const { RefCell::new(None) };
}

fn variables() -> MutexGuard<'static, Variables> {
    static FORK: Once = Once::new();
    FORK.call_once(|| {
        on_fork(
            || HELD.set(Some(lock())),
            || HELD.set(None),
            || {
                if let Some(mut variables) = HELD.take() {
                    // The threads in other constructors do not exist in the child, so their constructors never finish.
                    let here = thread::current().id();
                    variables.retain(|_, variable| !matches!(variable, Variable::UnderConstruction(by) if *by != here));
                }
            },
        );
    });
    lock()
}

fn lock() -> MutexGuard<'static, Variables> {
    // The table is consistent between any two statements that can panic.
    VARIABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result for a variable that exists already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Return,
    Refuse,
}

/// Removes the variable if its constructor does not return, or fails.
struct Making(Option<Key>);

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(key) = self.0 {
            variables().remove(&key);
            CONSTRUCTED.notify_all();
        }
    }
}

fn make(
    (object, id): (*mut c_void, u64),
    size: usize,
    constructor: Option<ShadowConstructor>,
    argument: *mut c_void,
    existing: Existing,
) -> *mut c_void {
    let key = (object.addr(), id);
    let here = thread::current().id();
    let mut table = variables();
    loop {
        match table.get(&key) {
            Some(Variable::Ready(data)) if existing == Existing::Return => return data.pointer(),
            Some(Variable::UnderConstruction(by)) if *by != here => {
                table = CONSTRUCTED.wait(table).unwrap_or_else(PoisonError::into_inner);
            }
            Some(_) => {
                tracing::warn!(id, "duplicate shadow variable");
                return ptr::null_mut();
            }
            None => break,
        }
    }
    let Some(data) = ShadowData::new(size) else { return ptr::null_mut() };
    let at = data.pointer();
    if let Some(constructor) = constructor {
        table.insert(key, Variable::UnderConstruction(here));
        drop(table);
        let mut making = Making(Some(key));
        let result = constructor(object, at, argument);
        if result != 0 {
            tracing::error!(id, result, "failed to construct shadow variable");
            return ptr::null_mut();
        }
        making.0 = None;
        table = variables();
    }
    table.insert(key, Variable::Ready(data));
    drop(table);
    CONSTRUCTED.notify_all();
    at
}

/// `void *klp_shadow_get(void *obj, unsigned long id)`.
pub(crate) extern "C" fn get(object: *mut c_void, id: u64) -> *mut c_void {
    match variables().get(&(object.addr(), id)) {
        Some(Variable::Ready(data)) => data.pointer(),
        _ => ptr::null_mut(),
    }
}

/// `void *klp_shadow_alloc(void *obj, unsigned long id, size_t size, gfp_t gfp_flags, klp_shadow_ctor_t ctor,
/// void *ctor_data)`.
pub(crate) extern "C-unwind" fn alloc(
    object: *mut c_void,
    id: u64,
    size: usize,
    _flags: u32,
    constructor: Option<ShadowConstructor>,
    argument: *mut c_void,
) -> *mut c_void {
    make((object, id), size, constructor, argument, Existing::Refuse)
}

/// `void *klp_shadow_get_or_alloc(...)`, as above.
pub(crate) extern "C-unwind" fn get_or_alloc(
    object: *mut c_void,
    id: u64,
    size: usize,
    _flags: u32,
    constructor: Option<ShadowConstructor>,
    argument: *mut c_void,
) -> *mut c_void {
    make((object, id), size, constructor, argument, Existing::Return)
}

fn destroy(object: *mut c_void, variable: Variable, destructor: Option<ShadowDestructor>) {
    if let Variable::Ready(data) = variable
        && let Some(destructor) = destructor
    {
        destructor(object, data.pointer());
    }
}

/// `void klp_shadow_free(void *obj, unsigned long id, klp_shadow_dtor_t dtor)`.
pub(crate) extern "C-unwind" fn free(object: *mut c_void, id: u64, destructor: Option<ShadowDestructor>) {
    let key = (object.addr(), id);
    let mut table = variables();
    let is_there = matches!(table.get(&key), Some(Variable::Ready(_)));
    let removed = if is_there { table.remove(&key) } else { None };
    drop(table);
    removed.into_iter().for_each(|variable| destroy(object, variable, destructor));
}

/// `void klp_shadow_free_all(unsigned long id, klp_shadow_dtor_t dtor)`.
pub(crate) extern "C-unwind" fn free_all(id: u64, destructor: Option<ShadowDestructor>) {
    let is_it = |key: &Key, variable: &mut Variable| key.1 == id && matches!(variable, Variable::Ready(_));
    let removed: Vec<_> = variables().extract_if(.., is_it).collect();
    for ((object, _), variable) in removed {
        destroy(ptr::with_exposed_provenance_mut(object), variable, destructor);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{c_int, c_void};
    use std::ptr;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{alloc, free, free_all, get, get_or_alloc};

    static CALLS: AtomicUsize = AtomicUsize::new(0);

    extern "C-unwind" fn counts(_: *mut c_void, _: *mut c_void, _: *mut c_void) -> c_int {
        CALLS.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
        0
    }

    extern "C-unwind" fn fails(object: *mut c_void, _: *mut c_void, _: *mut c_void) -> c_int {
        // Other threads do not see the variable, and the constructor cannot allocate it again.
        c_int::from(get(object, 7).is_null() && get_or_alloc(object, 7, 8, 0, None, ptr::null_mut()).is_null())
    }

    fn object(at: usize) -> *mut c_void {
        ptr::without_provenance_mut(at)
    }

    #[test]
    fn a_constructor_runs_once_however_many_want_the_variable() {
        const THREADS: usize = 8;
        for round in 0..200 {
            let (barrier, before) = (Barrier::new(THREADS), CALLS.load(Ordering::Relaxed));
            let one = || {
                barrier.wait();
                get_or_alloc(object(round), 1, 24, 0, Some(counts), ptr::null_mut()).addr()
            };
            let all: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(one)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(all[0] != 0 && all[0].is_multiple_of(16) && all.iter().all(|at| *at == all[0]), "{all:x?}");
            assert_eq!(CALLS.load(Ordering::Relaxed), before + 1);
        }
        free_all(1, None);
        assert!((0..200).all(|round| get(object(round), 1).is_null()));
    }

    #[test]
    fn what_is_not_there_is_null_and_what_fails_is_not_there() {
        assert!(get(object(1), 7).is_null());
        assert!(get_or_alloc(object(1), 7, 8, 0, Some(fails), ptr::null_mut()).is_null());
        assert!(get(object(1), 7).is_null());
        let first = alloc(object(1), 7, 8, 0, None, ptr::null_mut());
        assert!(!first.is_null() && get(object(1), 7) == first && get(object(1), 8).is_null());
        assert!(alloc(object(1), 7, 8, 0, None, ptr::null_mut()).is_null(), "a second one");
        assert_eq!(get_or_alloc(object(1), 7, 8, 0, None, ptr::null_mut()), first);
        assert!(alloc(object(2), 7, usize::MAX, 0, None, ptr::null_mut()).is_null(), "more than there can be");
        free(object(1), 7, None);
        free(object(1), 7, None);
        assert!(get(object(1), 7).is_null());
    }
}
