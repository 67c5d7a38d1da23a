//! The batch that is being poked, where the signal handler finds it.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use modload_edit::{Addr, EditSet, Step};

/// The edits of the batch; null when there is none.
static EDITS: AtomicPtr<EditSet> = AtomicPtr::new(ptr::null_mut());
/// How many threads look at them.
static READERS: AtomicUsize = AtomicUsize::new(0);
/// Moves whenever `EDITS` does.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// A batch that the signal handler knows. Dropping it takes it back and waits for who still looks at it.
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
        wait_for_readers();
        std::mem::forget(self);
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        EDITS.store(ptr::null_mut(), Ordering::SeqCst);
        CHANGES.fetch_add(1, Ordering::SeqCst);
        wait_for_readers();
    }
}

/// Whoever has seen the edits that were there before has gone when this returns.
fn wait_for_readers() {
    // They look for some hundred instructions; one that was interrupted meanwhile needs the processor.
    while READERS.load(Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
}

/// After fork: the threads that looked do not exist here.
pub(crate) fn forget_readers() {
    READERS.store(0, Ordering::SeqCst);
}

/// How often the batch has changed. If it is the same before and after, so was the batch. For the signal handler.
pub(crate) fn changes() -> u64 {
    CHANGES.load(Ordering::SeqCst)
}

/// What a thread that meets a trap at `at` does instead, if the batch has an edit there. For the signal handler.
pub(crate) fn step(at: Addr) -> Option<Step> {
    READERS.fetch_add(1, Ordering::SeqCst);
    let edits = EDITS.load(Ordering::SeqCst);
    // SAFETY: null, or the edits of a batch. `Announced` lets go of them only when it has seen no reader after it had
    // stored null: either it waits for us, who have counted ourselves before, or we have loaded null.
    let edits = unsafe { edits.as_ref() };
    let step = edits.and_then(|edits| edits.find(at)).and_then(|edit| Step::of(at, edit.new));
    READERS.fetch_sub(1, Ordering::Release);
    step
}
