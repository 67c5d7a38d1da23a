//! Keys with destructors, by owner.
//!
//! At the end of a thread, the C library sets the values of all keys to null, one key after the other, and calls a key's
//! destructor if the key has one. The keys here have none. So the values are noted here, too, for the destructors.

use std::ffi::{c_int, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::AtomicPtr;

use libc::pthread_key_t;

use super::{Destructor, all};
use crate::task::Tid;

/// How often the C library calls the destructors of a thread whose destructors set values again
/// (`PTHREAD_DESTRUCTOR_ITERATIONS`).
pub(super) const ROUNDS: u32 = 4;

/// A key of an owner.
struct OwnedKey {
    key: pthread_key_t,
    owner: u64,
    destructor: Option<Destructor>,
    /// The threads that have a value other than null, if the key has a destructor.
    values: Vec<ThreadValue>,
}

/// A thread's value of a key. Null while the thread calls the destructor.
struct ThreadValue {
    tid: Tid,
    value: AtomicPtr<c_void>,
}

impl OwnedKey {
    fn value_of(&mut self, tid: Tid) -> Option<&mut *mut c_void> {
        let of_thread = self.values.iter_mut().find(|of_thread| of_thread.tid == tid);
        of_thread.map(|of_thread| of_thread.value.get_mut())
    }
}

/// All keys with owners, in the order in which they were made.
pub(super) struct Keys {
    owned: Vec<OwnedKey>,
    /// The key whose destructor is [`thread_ends`], once it was needed.
    exit_key: Option<pthread_key_t>,
}

impl Keys {
    pub(super) const fn new() -> Keys {
        Keys { owned: Vec::new(), exit_key: None }
    }

    /// Keeps the threads of which `is_kept` is true.
    pub(super) fn retain_threads(&mut self, mut is_kept: impl FnMut(Tid) -> bool) {
        self.owned.iter_mut().for_each(|owned| owned.values.retain(|of_thread| is_kept(of_thread.tid)));
    }

    /// Gives all threads this number: after a fork there is only one.
    pub(super) fn rename_threads(&mut self, to: Tid) {
        self.owned.iter_mut().flat_map(|owned| &mut owned.values).for_each(|of_thread| of_thread.tid = to);
    }

    /// Returns a thread for each value of one of the owner's keys.
    pub(super) fn threads_of(&self, owner: u64) -> impl Iterator<Item = Tid> {
        let owned = self.owned.iter().filter(move |owned| owned.owner == owner);
        owned.flat_map(|owned| owned.values.iter().map(|of_thread| of_thread.tid))
    }

    /// Removes the keys of an owner, and returns them.
    pub(super) fn take_owned(&mut self, owner: u64) -> Vec<pthread_key_t> {
        self.owned.extract_if(.., |owned| owned.owner == owner).map(|owned| owned.key).collect()
    }

    /// Returns the key whose destructor is called at the end of threads.
    fn exit_key(&mut self) -> Option<pthread_key_t> {
        if self.exit_key.is_none() {
            self.exit_key = make_real(Some(thread_ends)).ok();
        }
        self.exit_key
    }
}

fn make_real(destructor: Option<unsafe extern "C" fn(*mut c_void)>) -> Result<pthread_key_t, c_int> {
    let mut key = 0;
    // SAFETY: the call writes the key. The destructor, if there is one, is a function of this module.
    let failed = unsafe { libc::pthread_key_create(&raw mut key, destructor) };
    if failed == 0 { Ok(key) } else { Err(failed) }
}

/// Deletes a key that is on no list any more.
pub(super) fn delete_real(key: pthread_key_t) {
    // SAFETY: the call takes a number. A key that does not exist is an error that changes nothing.
    unsafe { libc::pthread_key_delete(key) };
}

/// Makes a key for an owner, as `pthread_key_create` does.
///
/// # Errors
/// The error number of `pthread_key_create`.
///
/// # Safety
/// The destructor is null, or can be called with any value of the key for as long as [`super::open`] lists the owner.
pub unsafe fn create_key(owner: u64, destructor: *const c_void) -> Result<pthread_key_t, c_int> {
    // SAFETY: the caller guarantees that the pointer is a destructor or null.
    let destructor = unsafe { mem::transmute::<*const c_void, Option<Destructor>>(destructor) };
    let mut open = all();
    if destructor.is_some() && open.keys.exit_key().is_none() {
        return Err(libc::EAGAIN);
    }
    let key = make_real(None)?;
    open.keys.owned.push(OwnedKey { key, owner, destructor, values: Vec::new() });
    Ok(key)
}

/// Deletes a key, as `pthread_key_delete` does, and returns the result of that function. No destructor is called for the
/// key's values.
#[must_use]
pub fn delete_key(key: pthread_key_t) -> c_int {
    let mut open = all();
    open.keys.owned.retain(|owned| owned.key != key);
    // SAFETY: the call takes a number. A key that does not exist is an error that changes nothing.
    unsafe { libc::pthread_key_delete(key) }
}

/// Sets the calling thread's value of a key, as `pthread_setspecific` does, and returns the result of that function.
///
/// # Safety
/// As for `pthread_setspecific`: if the key has a destructor, that can be called with the value.
pub unsafe fn set_value(key: pthread_key_t, value: *const c_void) -> c_int {
    let mut open = all();
    // SAFETY: the caller guarantees that the value is one for this key.
    let failed = unsafe { libc::pthread_setspecific(key, value) };
    if failed != 0 {
        return failed;
    }
    let keys = &mut open.keys;
    let Some(owned) = keys.owned.iter_mut().find(|owned| owned.key == key && owned.destructor.is_some()) else {
        return 0;
    };
    let tid = Tid::current();
    match (owned.value_of(tid), value.is_null()) {
        // The destructor that this thread calls sets its own value: the thread stays listed.
        (Some(known), true) if known.is_null() => {}
        (Some(_), true) => owned.values.retain(|of_thread| of_thread.tid != tid),
        (Some(known), false) => *known = value.cast_mut(),
        (None, true) => {}
        (None, false) => {
            owned.values.push(ThreadValue { tid, value: AtomicPtr::new(value.cast_mut()) });
            arm(keys);
        }
    }
    0
}

/// Makes the C library call [`thread_ends`] at the end of this thread.
fn arm(keys: &Keys) {
    if let Some(key) = keys.exit_key {
        // The value only has to be other than null.
        let value = ptr::from_ref(&ROUNDS).cast();
        // SAFETY: the key's destructor does not use the value. Without memory for the value, the destructors of this
        // thread are not called, and the owner is kept until the thread ends.
        unsafe { libc::pthread_setspecific(key, value) };
    }
}

/// The destructor of the exit key: calls the destructors of all owners' keys once. The C library calls it again while
/// values are set.
unsafe extern "C" fn thread_ends(_value: *mut c_void) {
    if call_own(None, &mut |destructor: &mut dyn FnMut()| destructor()) {
        arm(&all().keys);
    }
}

/// Calls the destructor of each key of an owner, or of all owners, for which this thread has a value. The value is null
/// during the call. Returns whether any was called.
pub(super) fn call_own(owner: Option<u64>, guarded: &mut impl FnMut(&mut dyn FnMut())) -> bool {
    let tid = Tid::current();
    let is_owned = |owned: &OwnedKey| owner.is_none_or(|owner| owner == owned.owner);
    let mut keys: Vec<_> = all().keys.owned.iter().filter(|owned| is_owned(owned)).map(|owned| owned.key).collect();
    let take = |key: pthread_key_t| {
        let mut open = all();
        let owned = open.keys.owned.iter_mut().find(|owned| owned.key == key)?;
        let destructor = owned.destructor?;
        // The thread stays listed while it calls the destructor.
        let value = mem::replace(owned.value_of(tid)?, ptr::null_mut());
        Some((destructor, value))
    };
    keys.retain(|&key| {
        let Some((destructor, value)) = take(key) else { return false };
        // SAFETY: null is a value of every key.
        unsafe { libc::pthread_setspecific(key, ptr::null()) };
        if !value.is_null() {
            // SAFETY: the owner's code is present, because this thread is still listed.
            guarded(&mut || unsafe { destructor(value) });
        }
        if let Some(owned) = all().keys.owned.iter_mut().find(|owned| owned.key == key)
            && owned.value_of(tid).is_some_and(|value| value.is_null())
        {
            owned.values.retain(|of_thread| of_thread.tid != tid);
        }
        true
    });
    !keys.is_empty()
}
