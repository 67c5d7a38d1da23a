//! The batch that is being poked, for the signal handler, and the count of threads that the batch diverts.
//!
//! A thread counts itself before it reads the batch, and counts itself out once the result is stored in its saved
//! registers, where a holder of the thread can see the result. In between, the thread may have decided to resume at
//! some code, and no other thread can know that: neither the batch nor that code may be freed.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use modload_edit::{Addr, EditSet, InstructionEffect};

use crate::writing::text_lock::TextLock;

/// The edits of the batch; null when there is none.
static EDITS: AtomicPtr<EditSet> = AtomicPtr::new(ptr::null_mut());
/// The number of threads between their first read of the edits and the end of the resulting changes.
static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
/// Changes whenever `EDITS` does.
static CHANGE_COUNT: AtomicU64 = AtomicU64::new(0);

/// A batch that the signal handler knows. Dropping it withdraws the batch and waits for the threads that may still use
/// it.
pub(crate) struct AnnouncedBatch<'e> {
    /// Borrowed for as long as a thread may read the edits.
    _edits: &'e EditSet,
}

impl<'e> AnnouncedBatch<'e> {
    /// Announces the batch: from now on, a thread that hits a trap at one of the edits resumes as if the new
    /// instruction were there.
    pub(crate) fn new(_lock: &TextLock<'_>, edits: &'e EditSet) -> AnnouncedBatch<'e> {
        EDITS.store(ptr::from_ref(edits).cast_mut(), Ordering::SeqCst);
        CHANGE_COUNT.fetch_add(1, Ordering::SeqCst);
        AnnouncedBatch { _edits: edits }
    }

    /// Leaves the batch announced for ever: its traps could not be removed.
    pub(crate) fn keep_announced(self, edits: EditSet) {
        EDITS.store(Box::into_raw(Box::new(edits)), Ordering::SeqCst);
        wait_until_none_is_in_flight();
        std::mem::forget(self);
    }
}

impl Drop for AnnouncedBatch<'_> {
    fn drop(&mut self) {
        EDITS.store(ptr::null_mut(), Ordering::SeqCst);
        CHANGE_COUNT.fetch_add(1, Ordering::SeqCst);
        wait_until_none_is_in_flight();
    }
}

/// Returns when each thread that has read the earlier edits has acted on them, or has found that none of them applies.
fn wait_until_none_is_in_flight() {
    // A thread is in flight for some hundred instructions; one that was preempted meanwhile needs the processor.
    while traps_in_flight() != 0 {
        std::thread::yield_now();
    }
}

/// Returns the number of threads that are inside of the SIGTRAP handler at this moment, on their way from a trap in
/// text that can be poked to the place where they resume. A trap of other code counts while the handler checks it, and
/// no longer when it is passed on. Async-signal-safe. In a forked child the number begins with 0.
///
/// For a caller that wants to free code that sites have led to, for example a trampoline. First [`crate::poke`] removes
/// the last way to that code, then this number is 0 once, then every thread is held and no stack has a frame in that
/// code. After that, no thread can reach the code again. A thread that counts itself after the 0 was read loads the
/// batch after the poke has withdrawn it (all of these accesses are in one order: SeqCst), and resumes at the site. A
/// thread that had counted itself before had also counted itself out, so the place where it resumes is in its
/// registers. A thread whose trap the kernel is still delivering has not read the batch yet.
///
/// A poke by traps waits for the same 0 before it returns, because it lends its edits. No held thread is inside of the
/// handler, because the handler blocks every signal. So a caller after that poke finds the second condition true. The
/// caller checks it in order not to depend on the protocol of the poke.
#[must_use]
pub fn traps_in_flight() -> usize {
    IN_FLIGHT.load(Ordering::SeqCst)
}

/// Resets the count after fork: the threads that were in flight do not exist in the child. The forking thread is not in
/// flight, because the handler does not fork.
pub(crate) fn reset_traps_in_flight() {
    IN_FLIGHT.store(0, Ordering::SeqCst);
}

/// A thread that acts on the batch, until this value is dropped. For the signal handler.
pub(crate) struct TrapInFlight(());

impl TrapInFlight {
    pub(crate) fn begin() -> TrapInFlight {
        IN_FLIGHT.fetch_add(1, Ordering::SeqCst);
        TrapInFlight(())
    }
}

impl Drop for TrapInFlight {
    fn drop(&mut self) {
        // The stores into the thread's registers come before this.
        IN_FLIGHT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Returns the number of changes of the batch. If two calls return the same number, the batch was the same between
/// them. For the signal handler.
pub(crate) fn change_count() -> u64 {
    CHANGE_COUNT.load(Ordering::SeqCst)
}

/// Returns the effect that a thread takes instead of a trap at `at`, if the batch has an edit there. For the signal
/// handler.
pub(crate) fn effect_at(_counted: &TrapInFlight, at: Addr) -> Option<InstructionEffect> {
    let edits = EDITS.load(Ordering::SeqCst);
    // SAFETY: null, or the edits of a batch. `AnnouncedBatch` releases the edits only when it has seen no thread in
    // flight after it had stored null: either it waits for this thread, which was counted before, or this thread has
    // loaded null.
    let edits = unsafe { edits.as_ref() };
    edits.and_then(|edits| edits.find(at)).and_then(|edit| InstructionEffect::of(at, edit.new))
}
