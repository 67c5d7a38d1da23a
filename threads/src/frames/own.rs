//! Inspects the calling thread's own stack without walking it.

use std::cell::Cell;
use std::ops::Range;
use std::{mem, ptr};

use super::memory::ProcessMemory;
use super::x86_64::{is_mark_of_signal_frame, stack_pointer};

/// The size of one read.
const CHUNK: usize = 4096;

/// The largest stack depth that is inspected word by word: for a deeper stack, a walk is cheaper.
const DEEPEST: u64 = 1 << 16;

thread_local! {
    /// The lowest address of this thread's stack, and the address behind its highest; 0 and 0 if they cannot be
    /// determined.
    static STACK: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Returns whether this thread may return into a range. Inspects the words of the thread's stack from this frame
/// outward. A word counts if it lies in the range and `returned_to` finds that a call may precede its address. If there
/// is no such word, no frame resumes in the range, because the return address of each call is on the stack.
///
/// Returns `None` if the answer is not known: on a stack other than the one that the thread was started with, on a very
/// full stack, or where a signal frame may be, because a signal can have interrupted any instruction.
#[inline(never)]
pub fn may_return(range: &Range<u64>, returned_to: impl Fn(u64) -> bool) -> Option<bool> {
    let (low, high) = STACK.get().unwrap_or_else(|| {
        let bounds = bounds().unwrap_or_default();
        STACK.set(Some(bounds));
        bounds
    });
    let rsp = stack_pointer();
    if !(low..high).contains(&rsp) || high - rsp > DEEPEST {
        return None;
    }
    // The kernel reads the stack, because sanitizers and valgrind keep track of accesses to other functions' frames.
    let mut memory = ProcessMemory::own();
    let mut chunk = [0; CHUNK];
    let (mut at, end) = (rsp.next_multiple_of(8), high & !7);
    let mut found = false;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let words = chunk.get_mut(..len)?;
        if !memory.read_once(at, words) {
            return None;
        }
        for word in words.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            if is_mark_of_signal_frame(word) {
                return None;
            }
            found |= range.contains(&word) && returned_to(word);
        }
        at += u64::try_from(len).unwrap_or(u64::MAX);
    }
    Some(found)
}

/// Returns the bounds of this thread's stack, as the C library knows them.
fn bounds() -> Option<(u64, u64)> {
    // SAFETY: pthread_attr_t is a C union of integers; all zeros is a value of it.
    let mut attributes: libc::pthread_attr_t = unsafe { mem::zeroed() };
    // SAFETY: pthread_self cannot fail.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: the call fills in the attributes of this thread.
    if unsafe { libc::pthread_getattr_np(this, &raw mut attributes) } != 0 {
        return None;
    }
    let (mut start, mut size) = (ptr::null_mut(), 0_usize);
    // SAFETY: the attributes have been filled in; both results are local variables.
    let failed = unsafe { libc::pthread_attr_getstack(&raw const attributes, &raw mut start, &raw mut size) };
    // SAFETY: the attributes are not used any more.
    unsafe { libc::pthread_attr_destroy(&raw mut attributes) };
    let low = u64::try_from(start.expose_provenance()).ok()?;
    (failed == 0).then_some((low, low.checked_add(u64::try_from(size).ok()?)?))
}

#[cfg(test)]
mod tests {
    use super::may_return;

    #[inline(never)]
    fn deeper<R>(run: impl FnOnce() -> R) -> R {
        let result = run();
        std::hint::black_box(());
        result
    }

    #[test]
    fn a_frame_of_this_threads_is_found_and_an_absent_one_is_not() {
        #[expect(clippy::as_conversions, reason = "the only way from a function to its address")]
        let here = a_frame_of_this_threads_is_found_and_an_absent_one_is_not as *const ();
        let here = u64::try_from(here.expose_provenance()).unwrap();
        let range = here..here + 0x1000;
        assert_eq!(deeper(|| may_return(&range, |_| true)), Some(true));
        assert_eq!(deeper(|| may_return(&range, |_| false)), Some(false));
    }
}
