//! The state of a thread: its ring, and its return stack. `return_stack.rs` has the operations on the return stack.

use std::cell::Cell;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64};

use modload_text::Pages;

use super::function::FunctionRecord;
use super::ring::Unit;

/// The state of a thread. Only the thread itself writes it, except for `tail`, and except in the child of a fork.
#[repr(C)]
pub(super) struct TraceThread {
    /// The newest of the places of functions that the thread is in.
    pub(super) top: Cell<*mut ReturnPlace>,
    /// The free places.
    pub(super) free: Cell<*mut ReturnPlace>,
    /// The first place that was never used, and the end of such places.
    pub(super) fresh: Cell<*mut ReturnPlace>,
    pub(super) limit: Cell<*mut ReturnPlace>,
    /// The places of functions that were assumed to be left but may still be alive.
    pub(super) lost: Cell<*mut ReturnPlace>,
    /// The address that recorded functions return to.
    pub(super) returns: Cell<u64>,
    /// The last detection of this thread on a coroutine's stack.
    pub(super) inner: Cell<InnerStack>,
    /// The end of a stack for walks, because the thread's current stack may be small.
    pub(super) walk_stack: Cell<*mut u8>,
    /// The thread's own stack: the lowest address, and the size in bytes.
    pub(super) stack: Cell<u64>,
    pub(super) stack_len: Cell<u64>,
    pub(super) ring: AtomicPtr<Unit>,
    /// The number of units in the ring less 1.
    pub(super) mask: AtomicU64,
    /// The number of units that were written.
    pub(super) head: AtomicU64,
    /// The number of recorded functions that the thread is in.
    pub(super) open: Cell<u64>,
    /// The largest number of used units at which two more are free.
    pub(super) room: Cell<u64>,
    pub(super) dropped: AtomicU64,
    pub(super) deep: AtomicU64,
    pub(super) elsewhere: AtomicU64,
    /// The recording that the thread has joined.
    pub(super) session: AtomicU32,
    pub(super) tid: AtomicI32,
    pub(super) ended: AtomicBool,
    /// The thread's name, from prctl(2).
    pub(super) name: Cell<[u8; 16]>,
    /// The next of the threads that no reader has taken yet.
    pub(super) next: Cell<*mut TraceThread>,
    /// The memory of this state, and the memory of the ring.
    pub(super) pages: Cell<Option<Pages>>,
    pub(super) ring_pages: Cell<Option<Pages>>,
    /// The number of units that were read, apart from the rest, because another processor writes this number.
    pub(super) tail: CacheLineCounter,
}

/// A counter in a cache line of its own.
#[repr(C, align(128))]
pub(super) struct CacheLineCounter(pub(super) AtomicU64);

impl std::ops::Deref for CacheLineCounter {
    type Target = AtomicU64;
    fn deref(&self) -> &AtomicU64 {
        &self.0
    }
}

/// A place on the return stack, for a function that a thread is in.
#[repr(C)]
pub(super) struct ReturnPlace {
    /// The function's return address.
    pub(super) parent: u64,
    /// The caller's value of rbx.
    pub(super) saved: u64,
    /// `parent` and `saved` of the oldest of the functions that share a frame by tail calls.
    pub(super) outer: u64,
    pub(super) outer_saved: u64,
    /// The address at which the function continued behind its site.
    pub(super) target: u64,
    /// The address at which the function's return address is stored.
    pub(super) slot: u64,
    pub(super) function: *const FunctionRecord,
    /// The next place in the same list. For the places of functions, this is the function that was entered before.
    pub(super) next: *mut ReturnPlace,
    /// The recording of the entry, or 0 if the function's end is recorded already.
    pub(super) session: u32,
    /// The state of the place.
    pub(super) state: PlaceState,
}

impl ReturnPlace {
    pub(super) fn unused(slot: u64) -> ReturnPlace {
        let (function, next) = (ptr::null(), ptr::null_mut());
        ReturnPlace {
            parent: 0,
            saved: 0,
            outer: 0,
            outer_saved: 0,
            target: 0,
            slot,
            function,
            next,
            session: 0,
            state: PlaceState::Open,
        }
    }
}

/// The state of a place.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PlaceState {
    /// A function is in the place, or `longjmp` has left the function. Free places have this state, too.
    Open = 0,
    /// An unwinder has left the function.
    Unwound,
    /// The function was assumed to be left. If it returns, its end is not recorded.
    Lost,
}

/// A detection of the thread on a coroutine's stack: the thread was between these two addresses, when this place was
/// the newest.
#[derive(Clone, Copy, Default)]
pub(super) struct InnerStack {
    pub(super) low: u64,
    pub(super) high: u64,
    pub(super) top: usize,
    /// The `slot` and the `parent` of the newest place, which identify the function, because places are used again.
    pub(super) slot: u64,
    pub(super) parent: u64,
}

impl TraceThread {
    /// # Safety
    /// The thread has ended, and no other code has a reference to this state.
    pub(super) unsafe fn free(thread: NonNull<TraceThread>) {
        // SAFETY: the caller's.
        let state = unsafe { thread.as_ref() };
        let (pages, ring) = (state.pages.take(), state.ring_pages.take());
        drop(ring);
        // The memory of the state itself is dropped last.
        drop(pages);
    }
}
