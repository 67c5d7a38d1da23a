//! Lets threads join a recording, and handles their ends.
//!
//! A thread joins a recording at its first call of a traced function in it ([`attach`]). That call may be in a signal
//! handler or inside of malloc, so joining allocates nothing and takes no lock.

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use modload_edit::{index, wide};
use modload_text::Pages;
use modload_threads::Tid;

use super::process_state::RING_BYTES;
use super::reader::RingReader;
use super::ring::UNIT;
use super::thread::{CacheLineCounter, InnerStack, ReturnPlace, TraceThread};
use super::thread_local::{ENDING, Local, local};
use super::x86_64::graph;
use super::{stack, walk_stack};

/// The most functions on a return stack.
const MOST_PLACES: usize = 1024;

/// The key through which the C library reports the end of a thread, or `u64::MAX` if there is none.
static KEY: AtomicU64 = AtomicU64::new(u64::MAX);

/// The threads that have joined and that no reader has taken yet.
static NEW_THREADS: AtomicPtr<TraceThread> = AtomicPtr::new(ptr::null_mut());

/// Registers with the C library for the ends of threads.
pub(super) fn register_for_ends() {
    let mut key = 0;
    // SAFETY: `key` is a local variable, and `end` is a function of the required type.
    let failed = unsafe { libc::pthread_key_create(&raw mut key, Some(end)) };
    if failed == 0 {
        KEY.store(wide(index(key.into())), Ordering::SeqCst);
    }
}

/// Lets this thread join a recording. Returns `None` if it cannot: its stack is not known, or there is no memory.
pub(super) fn attach(local: &Local, session: u32) -> Option<()> {
    let known = NonNull::new(local.thread.get());
    let (thread, is_new) = match known {
        Some(thread) => (thread, false),
        None => (make_state(local)?, true),
    };
    // SAFETY: the state is this thread's own. Fields that other threads read are atomic, or written before the store to
    // `session`.
    let state = unsafe { thread.as_ref() };
    let bytes = RING_BYTES.load(Ordering::Acquire);
    let units = bytes / UNIT;
    if state.mask.load(Ordering::Relaxed) + 1 != units {
        // The old ring is not read any more: its recording is over (`FunctionTrace::finish`).
        let Ok(pages) = Pages::new(index(bytes)) else {
            if is_new {
                // Nothing else knows the state, and nothing uses it after this.
                drop(state.pages.take());
            }
            return None;
        };
        state.ring.store(pages.as_mut_ptr().cast(), Ordering::Relaxed);
        state.mask.store(units - 1, Ordering::Relaxed);
        state.room.set(units - 2);
        drop(state.ring_pages.replace(Some(pages)));
    }
    state.head.store(0, Ordering::Relaxed);
    state.tail.store(0, Ordering::Relaxed);
    state.open.set(0);
    for count in [&state.dropped, &state.deep, &state.elsewhere] {
        count.store(0, Ordering::Relaxed);
    }
    let mut name = [0_u8; 16];
    // SAFETY: the buffer has sixteen bytes, as PR_GET_NAME requires.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    state.name.set(name);
    // The reader reads the ring from here on.
    state.session.store(session, Ordering::Release);
    local.session.set(session);
    if is_new {
        local.thread.set(thread.as_ptr());
        let mut first = NEW_THREADS.load(Ordering::Relaxed);
        loop {
            state.next.set(first);
            match NEW_THREADS.compare_exchange_weak(first, thread.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => first = now,
            }
        }
        if let Ok(key) = u32::try_from(KEY.load(Ordering::Relaxed)) {
            // SAFETY: the key is from `register_for_ends`. For the first keys, the C library has room in the thread
            // itself.
            unsafe { libc::pthread_setspecific(key, thread.as_ptr().cast_const().cast()) };
        }
    }
    Some(())
}

/// Makes a state for this thread, without a ring.
fn make_state(local: &Local) -> Option<NonNull<TraceThread>> {
    let (stack, stack_len) = stack::own(wide(ptr::from_ref(local).addr()))?;
    let places = size_of::<TraceThread>().next_multiple_of(align_of::<ReturnPlace>());
    let all = places + (MOST_PLACES + 1) * size_of::<ReturnPlace>();
    let walk_stack_start = all.next_multiple_of(walk_stack::PAGE) + walk_stack::PAGE;
    let pages = Pages::new(walk_stack_start + walk_stack::STACK).ok()?;
    let thread: *mut TraceThread = pages.as_mut_ptr().cast();
    let first: *mut ReturnPlace = pages.as_mut_ptr().wrapping_add(places).cast();
    let state = TraceThread {
        top: Cell::new(first),
        free: Cell::new(ptr::null_mut()),
        fresh: Cell::new(first.wrapping_add(1)),
        limit: Cell::new(first.wrapping_add(MOST_PLACES + 1)),
        lost: Cell::new(ptr::null_mut()),
        returns: Cell::new(graph::returns()),
        inner: Cell::new(InnerStack::default()),
        walk_stack: Cell::new(pages.as_mut_ptr().wrapping_add(walk_stack_start + walk_stack::STACK)),
        stack: Cell::new(stack),
        stack_len: Cell::new(stack_len),
        ring: AtomicPtr::new(ptr::null_mut()),
        mask: AtomicU64::new(0),
        head: AtomicU64::new(0),
        open: Cell::new(0),
        room: Cell::new(0),
        dropped: AtomicU64::new(0),
        deep: AtomicU64::new(0),
        elsewhere: AtomicU64::new(0),
        session: AtomicU32::new(0),
        tid: AtomicI32::new(Tid::current().get()),
        ended: AtomicBool::new(false),
        name: Cell::new([0; 16]),
        next: Cell::new(ptr::null_mut()),
        pages: Cell::new(Some(pages)),
        ring_pages: Cell::new(None),
        tail: CacheLineCounter(AtomicU64::new(0)),
    };
    // SAFETY: the pages are fresh, large enough and aligned.
    unsafe { thread.write(state) };
    // SAFETY: the place is within the same pages, aligned, and not in use yet. The place is above every frame.
    unsafe { first.write(ReturnPlace::unused(u64::MAX)) };
    NonNull::new(thread)
}

/// Handles the end of a thread that has joined. Called by the C library.
extern "C" fn end(thread: *mut c_void) {
    let local = local();
    // SAFETY: `attach` has given this state of this thread to the C library.
    let Some(state) = (unsafe { thread.cast::<TraceThread>().as_ref() }) else { return };
    // The thread never returns to the functions that it was in.
    while state.places().next().is_some_and(|place| place.slot != u64::MAX) {
        state.leave_newest();
    }
    local.session.set(ENDING);
    local.thread.set(ptr::null_mut());
    state.ended.store(true, Ordering::Release);
}

/// Takes the threads that have joined since the last call.
pub(crate) fn take_new_threads() -> Vec<RingReader> {
    let mut next = NEW_THREADS.swap(ptr::null_mut(), Ordering::Acquire);
    let mut found = Vec::new();
    while let Some(thread) = NonNull::new(next) {
        // SAFETY: the thread is in the list once, so it has no other reader.
        found.push(unsafe { RingReader::new(thread) });
        // SAFETY: the state lives until its reader frees it. `next` was written before the state was added to the list.
        next = unsafe { thread.as_ref() }.next.get();
    }
    // The last thread that has joined is the first in the list.
    found.reverse();
    found
}
