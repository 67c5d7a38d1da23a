//! The return stack of a thread: the places of the functions that the thread is in, of functions that were assumed to
//! be left, and free places. All of this code is async-signal-safe.

use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::Ordering;

use modload_edit::index;
use modload_threads::frames::Ended;

use super::ring::{UNWOUND, Unit};
use super::thread::{InnerStack, PlaceState, ReturnPlace, TraceThread};
use super::thread_local::local;
use super::walk_stack;
use super::x86_64::time_stamp;

/// The answers to assembler code: the function runs without a record, or the code tries again.
pub(super) const PASS: u64 = 0;
pub(super) const RETRY: u64 = 1;
/// The answer for a function that returns: its end is recorded, and its place is given back.
pub(super) const DONE: u64 = 1;

impl TraceThread {
    /// Makes way for a function that is entered: gives back the places of functions that were left and are not above
    /// the function. Returns whether the function can be recorded.
    pub(super) fn prepare_for_entry(&self, slot: u64) -> u64 {
        let is_tail_call = self.is_intact(slot);
        let is_in_the_way = |place: &ReturnPlace| place.slot < slot || (place.slot == slot && !is_tail_call);
        // A function with an intact return address may be alive, unless an unwinder has left it.
        let is_uncertain = |place: &ReturnPlace| place.state == PlaceState::Open && self.is_intact(place.slot);
        if self.places().take_while(|place| is_in_the_way(place)).any(is_uncertain) && self.is_on_inner_stack(slot) {
            self.elsewhere.fetch_add(1, Ordering::Relaxed);
            return PASS;
        }
        while self.places().next().is_some_and(is_in_the_way) {
            self.leave_newest();
        }
        if self.free.get().is_null() {
            self.sweep();
        }
        if self.free.get().is_null() {
            self.take_fresh();
        }
        if self.free.get().is_null() {
            self.deep.fetch_add(1, Ordering::Relaxed);
            return PASS;
        }
        RETRY
    }

    /// Handles the return of a function whose place is not the newest. Returns whether the return is complete.
    pub(super) fn handle_return(&self, place: *mut ReturnPlace) -> u64 {
        // SAFETY: this place is from the call of a function of this thread, and only this code gives it back.
        if unsafe { (*place).state } == PlaceState::Lost {
            self.take_from_lost(place);
            self.give_back(place);
            return DONE;
        }
        while !ptr::eq(self.top.get(), place) && self.places().next().is_some_and(|newest| newest.slot != u64::MAX) {
            self.leave_newest();
        }
        PASS
    }

    /// Gives back the newest place, whose function has been left. If the function may be alive, the place is kept for
    /// the function's return. Only the return address tells whether it may be.
    pub(super) fn leave_newest(&self) {
        let place = self.top.get();
        record_end(place, UNWOUND);
        // SAFETY: the place is the thread's own, and initialized.
        let newest = unsafe { &mut *place };
        self.top.set(newest.next);
        if newest.state == PlaceState::Unwound || !self.is_intact(newest.slot) {
            return self.give_back(place);
        }
        // If two places have the same slot, the older function has been left, unless the newer function is its
        // tail call.
        let (slot, callee) = (newest.slot, newest.parent == self.returns.get());
        if !callee {
            self.drop_lost(|lost| lost.slot == slot);
        }
        newest.state = PlaceState::Lost;
        newest.next = self.lost.get();
        self.lost.set(place);
    }

    fn give_back(&self, place: *mut ReturnPlace) {
        // SAFETY: the place is the thread's own, and in no list.
        let free = unsafe { &mut *place };
        free.state = PlaceState::Open;
        free.next = self.free.get();
        self.free.set(place);
    }

    /// Gives back the lost places whose return address was overwritten: their functions are not alive any more.
    fn sweep(&self) {
        self.drop_lost(|lost| !self.is_intact(lost.slot));
    }

    /// Takes some of the places that were never used. The memory of these places was not touched before.
    fn take_fresh(&self) {
        const SOME: usize = 32;
        for _ in 0..SOME {
            let place = self.fresh.get();
            if ptr::eq(place, self.limit.get()) {
                return;
            }
            self.fresh.set(place.wrapping_add(1));
            // SAFETY: the place is within the thread's own pages, aligned, and in no list.
            unsafe { place.write(ReturnPlace::unused(0)) };
            self.give_back(place);
        }
    }

    fn take_from_lost(&self, place: *mut ReturnPlace) {
        let mut rest = self.lost.replace(ptr::null_mut());
        // SAFETY: the list holds places of this thread.
        while let Some(lost) = unsafe { rest.as_mut() } {
            let this = std::mem::replace(&mut rest, lost.next);
            if !ptr::eq(this, place) {
                lost.next = self.lost.replace(this);
            }
        }
    }

    fn drop_lost(&self, is_gone: impl Fn(&ReturnPlace) -> bool) {
        let mut rest = self.lost.replace(ptr::null_mut());
        // SAFETY: the list holds places of this thread.
        while let Some(lost) = unsafe { rest.as_mut() } {
            let this = std::mem::replace(&mut rest, lost.next);
            if is_gone(lost) {
                self.give_back(this);
            } else {
                lost.next = self.lost.replace(this);
            }
        }
    }

    /// Returns the places of the functions that the thread is in, the newest first, and then the place that is above
    /// every frame.
    pub(super) fn places(&self) -> impl Iterator<Item = &ReturnPlace> {
        let mut next = self.top.get();
        std::iter::from_fn(move || {
            // SAFETY: the list holds places of this thread, which are initialized. The list does not change during this
            // iteration.
            let place = unsafe { next.as_ref() }?;
            next = place.next;
            Some(place)
        })
    }

    /// Returns whether the return address at `slot` is the one of recorded functions, and `slot` is within the thread's
    /// own stack: always while the function is alive, and afterwards until the address is overwritten.
    fn is_intact(&self, slot: u64) -> bool {
        if slot.wrapping_sub(self.stack.get()) >= self.stack_len.get() {
            return false;
        }
        let at: *const u64 = ptr::with_exposed_provenance(index(slot));
        // SAFETY: the address is in the thread's own stack, at the return address of one of its functions: mapped, and
        // aligned.
        unsafe { at.read_volatile() == self.returns.get() }
    }

    /// Returns whether the function with this return address was called on the stack of a coroutine that lies within
    /// the thread's own stack. If so, the stack walk from the function reaches the frame of a function that is below
    /// it, or does not end where threads begin.
    fn is_on_inner_stack(&self, slot: u64) -> bool {
        let inner = self.inner.get();
        // SAFETY: the place is the thread's own, and initialized.
        let newest = unsafe { &*self.top.get() };
        let (top, top_slot, parent) = (ptr::from_ref(newest).addr(), newest.slot, newest.parent);
        let is_same = (inner.top, inner.slot, inner.parent) == (top, top_slot, parent);
        if is_same && (inner.low..=inner.high).contains(&slot) {
            return true;
        }
        let mut met = None;
        let mut outermost = (0, 0);
        let walked = walk_stack::walk(self.walk_stack.get(), |frame| {
            outermost = (frame.pc, frame.cfa);
            if frame.pc == self.returns.get() && !frame.is_exact {
                // The slot is 16 below the CFA: by the unwind rows of `graph`, the CFA is the caller's stack pointer
                // before the call, plus 8.
                met = Some(frame.cfa - 16);
            }
            if met.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let is_own = match (met, walked) {
            // The function is called by a function that is above it.
            (Some(met), _) => met > slot && self.places().any(|place| place.slot == met),
            (None, Ok(Ended::Outermost)) => walk_stack::is_start(outermost.0),
            // Nothing is known.
            _ => false,
        };
        if !is_own && walked == Ok(Ended::Outermost) {
            let low = if is_same && inner.high == outermost.1 { inner.low.min(slot) } else { slot };
            self.inner.set(InnerStack { low, high: outermost.1, top, slot: top_slot, parent });
        }
        !is_own
    }
}

/// Records that an unwinder has left a function. Functions that it had called and that `longjmp` had left are recorded
/// before, and functions whose tail call it was afterwards. The next function that is entered or left gives back the
/// places, because the unwinder reads them after this call.
pub(super) fn record_unwound(place: *mut ReturnPlace) {
    // SAFETY: the place belongs to this thread, and is initialized.
    let slot = unsafe { (*place).slot };
    // SAFETY: a thread that has places has a state, which is its own.
    let Some(thread) = (unsafe { local().thread.get().as_ref() }) else { return };
    let mut next = thread.top.get();
    // SAFETY: the list holds places of this thread, which are initialized. The last one is above every frame.
    while let Some(newer) = unsafe { next.as_mut() }.filter(|newer| newer.slot <= slot) {
        record_end(next, UNWOUND);
        if newer.slot == slot {
            newer.state = PlaceState::Unwound;
        }
        next = newer.next;
    }
}

/// Records once that a function of this thread was left. Called in the thread's order.
fn record_end(place: *mut ReturnPlace, what: u32) {
    let local = local();
    let before = local.busy.replace(2);
    // SAFETY: a thread that has places has a state, which is its own.
    let thread = unsafe { local.thread.get().as_ref() };
    // SAFETY: the caller's place belongs to this thread and is initialized. No other code refers to it while `busy` is
    // set.
    let place = unsafe { &mut *place };
    if let Some(thread) = thread.filter(|thread| place.session == thread.session.load(Ordering::Relaxed)) {
        place.session = 0;
        // SAFETY: functions live for ever.
        let number = unsafe { (*place.function).number };
        let head = thread.head.load(Ordering::Relaxed);
        let unit = thread.ring.load(Ordering::Relaxed).wrapping_add(index(head & thread.mask.load(Ordering::Relaxed)));
        // SAFETY: this unit was kept free when the function was entered.
        unsafe { unit.write(Unit { time: time_stamp(), number, what }) };
        thread.open.set(thread.open.get() - 1);
        thread.head.store(head + 1, Ordering::Release);
    }
    local.busy.set(before);
}
