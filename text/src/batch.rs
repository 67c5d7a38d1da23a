//! The batch that is being poked, where the signal handler finds it, and the threads that are being sent on by it.
//!
//! A thread counts itself before it looks at the batch, and counts itself out when what follows from it stands in its
//! saved registers, where whoever holds it can see it. In between it may have decided to go on at some code and nobody
//! can know: neither the batch nor that code may be let go of.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use modload_edit::{Addr, EditSet, InstructionEffect};

/// The edits of the batch; null when there is none.
static EDITS: AtomicPtr<EditSet> = AtomicPtr::new(ptr::null_mut());
/// How many threads are between their first look at them and the end of what follows.
static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
/// Moves whenever `EDITS` does.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// A batch that the signal handler knows. Dropping it takes it back and waits for who may still be going by it.
pub(crate) struct Announced<'e> {
    /// Borrowed for as long as somebody may look.
    _edits: &'e EditSet,
}

impl<'e> Announced<'e> {
    /// From now on a thread that meets a trap at one of the edits goes on as if the new instruction stood there.
    pub(crate) fn new(_lock: &crate::TextLock<'_>, edits: &'e EditSet) -> Announced<'e> {
        EDITS.store(ptr::from_ref(edits).cast_mut(), Ordering::SeqCst);
        CHANGES.fetch_add(1, Ordering::SeqCst);
        Announced { _edits: edits }
    }

    /// Leaves the batch announced for ever: its traps could not be taken back.
    pub(crate) fn forget(self, edits: EditSet) {
        EDITS.store(Box::into_raw(Box::new(edits)), Ordering::SeqCst);
        wait_until_none_is_in_flight();
        std::mem::forget(self);
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        EDITS.store(ptr::null_mut(), Ordering::SeqCst);
        CHANGES.fetch_add(1, Ordering::SeqCst);
        wait_until_none_is_in_flight();
    }
}

/// Whoever has seen the edits that were there before has gone on by them, or not at all, when this returns.
fn wait_until_none_is_in_flight() {
    // They are for some hundred instructions; one that was interrupted meanwhile needs the processor.
    while traps_in_flight() != 0 {
        std::thread::yield_now();
    }
}

/// How many threads are at this moment inside of our SIGTRAP handler, on their way from a trap in text that can be
/// poked to where they go on. A trap that is somebody else's counts while it is looked at, and no longer when it is
/// passed on. Async-signal-safe. In a forked child it begins with 0.
///
/// For who wants to free code that sites have led to, a trampoline say: first [`crate::poke`] takes the last way
/// there away, then this is 0 once, then every thread is held and no stack has a frame in that code; then nobody can
/// come there again. For a thread that counts itself after the 0 was read loads the batch after the poke has taken it
/// back (all of these are in one order: SeqCst), and goes on at the site. One that had counted itself before had also
/// counted itself out, so where it goes on stands in its registers. And one that the kernel is still bringing here
/// has not looked yet.
///
/// A poke by traps waits for the same 0 before it returns, since it lends its edits; and nobody who is held is
/// inside, for the handler blocks every signal. So whoever comes after that poke finds the second condition true, and
/// asks in order not to depend on how it was poked.
#[must_use]
pub fn traps_in_flight() -> usize {
    IN_FLIGHT.load(Ordering::SeqCst)
}

/// After fork: the threads that were in flight do not exist here. The one that forks is not: nothing in between forks.
pub(crate) fn forget_in_flight() {
    IN_FLIGHT.store(0, Ordering::SeqCst);
}

/// A thread that goes by the batch, until this is dropped. For the signal handler.
pub(crate) struct InFlight(());

impl InFlight {
    pub(crate) fn begin() -> InFlight {
        IN_FLIGHT.fetch_add(1, Ordering::SeqCst);
        InFlight(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // What was stored into the thread's registers comes before.
        IN_FLIGHT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How often the batch has changed. If it is the same before and after, so was the batch. For the signal handler.
pub(crate) fn changes() -> u64 {
    CHANGES.load(Ordering::SeqCst)
}

/// What a thread that meets a trap at `at` does instead, if the batch has an edit there. For the signal handler.
pub(crate) fn step(_counted: &InFlight, at: Addr) -> Option<InstructionEffect> {
    let edits = EDITS.load(Ordering::SeqCst);
    // SAFETY: null, or the edits of a batch. `Announced` lets go of them only when it has seen nobody in flight after it
    // had stored null: either it waits for us, who have been counted before, or we have loaded null.
    let edits = unsafe { edits.as_ref() };
    edits.and_then(|edits| edits.find(at)).and_then(|edit| InstructionEffect::of(at, edit.new))
}
