//! Inspects the calling thread's own stack without walking it.

use std::arch::asm;
use std::cell::Cell;
use std::ops::Range;
use std::{mem, ptr};

use super::memory::ProcessMemory;

/// The size of one read.
const CHUNK: usize = 4096;

/// The largest stack depth that is inspected word by word: for a deeper stack, a walk is cheaper.
const DEEPEST: u64 = 1 << 16;

thread_local! {
    /// The lowest address of this thread's stack, and the address behind its highest; 0 and 0 if they cannot be
    /// determined.
    static STACK: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Two marks of a signal frame. The kernel writes them into the frame, and other code hardly ever onto a stack: the
/// segment registers of a 64-bit thread in one word (`struct sigcontext`: cs 0x33, ss 0x2b), and `FP_XSTATE_MAGIC1` in
/// the lower half of another word.
const SEGMENTS: u64 = 0x002b_0000_0000_0033;
const XSTATE: u64 = 0x4650_5853;

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
    let rsp: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
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
            if word == SEGMENTS || word & 0xffff_ffff == XSTATE {
                return None;
            }
            found |= range.contains(&word) && returned_to(word);
        }
        at += u64::try_from(len).unwrap_or(u64::MAX);
    }
    Some(found)
}

/// Returns whether the bytes before an address may end with a call: `call rel32`, or `call` through a register or
/// memory, of two to seven bytes. Other code may end with the same bytes.
#[must_use]
pub fn is_behind_call(before: &[u8]) -> bool {
    let ends_so = |len: usize| before.len().checked_sub(len).and_then(|start| before.get(start..));
    let relative = ends_so(5).is_some_and(|call| call[0] == 0xe8);
    let indirect = |len| ends_so(len).is_some_and(|call: &[u8]| call[0] == 0xff && matches!(call[1] >> 3 & 7, 2 | 3));
    relative || (2..=7).any(indirect)
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
    use super::{is_behind_call, may_return};

    #[test]
    fn calls_of_every_length_are_recognised() {
        let calls: [&[u8]; 8] = [
            &[0xe8, 1, 2, 3, 4],
            &[0x67, 0xe8, 1, 2, 3, 4],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x50, 0x18],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
            &[0x42, 0xff, 0x14, 0xe5, 1, 2, 3, 4],
        ];
        for call in calls {
            assert!(is_behind_call(&[&[0x90; 8], call].concat()), "{call:02x?}");
        }
        for other in [&[][..], &[0xff], &[0x90; 8], &[0xc3], &[0xcc; 8], &[0xff, 0xe0], &[0xe9, 1, 2, 3, 4]] {
            assert!(!is_behind_call(other), "{other:02x?}");
        }
    }

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
