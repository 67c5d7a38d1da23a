//! The arena: one reservation, one stripe for each class, and the ranges that are taken from the stripes.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use memmap2::MmapMut;
use modload_edit::{Addr, index, wide};

use crate::address_space::pointer::pointer;
use crate::address_space::reserve::{self, MappingAccess, Reserved};
use crate::allocation::owners::{self, TextState};
use crate::allocation::stripe::Stripe;
use crate::vocabulary::class::Class;
use crate::vocabulary::error::{ArenaError, OutOfMemory, WriteFailed};
use crate::vocabulary::machine::{INT3, PAGE};
use crate::writing::text_lock::TextLock;

/// The usage of a stripe: for reports, and for tests that check that no memory was left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StripeUsage {
    /// The class of the stripe.
    pub class: Class,
    /// The first address.
    pub start: Addr,
    /// The size in bytes.
    pub len: u64,
    /// The number of bytes that are in use.
    pub used: u64,
    /// The number of bytes from the start whose pages have been faulted in. Grows in steps and never shrinks.
    pub touched: u64,
    /// The free ranges: offset and length, by offset. No two of them touch.
    pub free: Vec<(u64, u64)>,
}

/// A range of a stripe. Dropping it frees the range.
#[derive(Debug)]
pub(crate) struct Extent {
    arena: &'static Arena,
    pub(crate) class: Class,
    pub(crate) start: Addr,
    pub(crate) len: u64,
}

/// The access that data pages permit. Neither permits execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DataAccess {
    Read,
    ReadWrite,
}

impl Extent {
    /// Changes the access of ro_after_init data, which is an extent of whole pages.
    pub(crate) fn protect(&self, access: DataAccess) -> io::Result<()> {
        let at: *mut u8 = pointer(self.start);
        let protection = match access {
            DataAccess::Read => libc::PROT_READ,
            DataAccess::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: an extent of whole pages of ro_after_init data, to which no reference exists: `NewData` and
        // `ModuleData` lend slices and raw copies only. Neither protection is executable. The kernel refuses an extent
        // that does not begin on a page.
        let failed = unsafe { libc::mprotect(at.cast(), index(self.len), protection) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Returns whether `len` bytes from an address on lie in this extent.
    pub(crate) fn covers(&self, at: Addr, len: usize) -> bool {
        let end = at.checked_offset_from(self.start).and_then(|offset| offset.checked_add(wide(len)));
        end.is_some_and(|end| end <= self.len)
    }

    /// Copies bytes out. Returns `None` if not all of them lie in this extent.
    pub(crate) fn read(&self, at: Addr, len: usize) -> Option<Vec<u8>> {
        self.covers(at, len).then(|| {
            let mut bytes = vec![0; len];
            // SAFETY: the source lies within the extent (checked), the destination is a local vector of that length.
            unsafe { ptr::copy_nonoverlapping(pointer(at), bytes.as_mut_ptr(), len) };
            bytes
        })
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        if self.class == Class::Text {
            owners::set_state(self.start, TextState::Freed);
        }
        if self.class == Class::RoAfterInit
            && let Err(failed) = self.protect(DataAccess::Read)
        {
            tracing::error!(at = %self.start, %failed, "freed ro_after_init data stays writable");
        }
        let offset = self.start.get() - self.arena.starts[stripe_index(self.class)].get();
        self.arena.lock_state().stripes[stripe_index(self.class)].give_back(offset, self.len);
    }
}

/// All memory for modules of this process. There is one arena, which hosts share.
#[derive(Debug)]
pub struct Arena {
    low: bool,
    starts: [Addr; 4],
    lens: [u64; 4],
    state: Mutex<ArenaState>,
}

/// The data that changes when memory is taken and freed.
#[derive(Debug)]
pub(crate) struct ArenaState {
    stripes: [Stripe; 4],
    /// Staging buffers that can be reused.
    pub(crate) buffers: Vec<MmapMut>,
}

/// The unmapped space between two stripes: an access beyond the end of one stripe does not reach the next.
const GAP: u64 = 16 * PAGE;
/// The number of bytes whose pages are faulted in at a time.
const FAULT_IN_STEP: u64 = 64 * PAGE;

static ARENA: OnceLock<Arena> = OnceLock::new();
static TEXT_START: AtomicU64 = AtomicU64::new(0);
static TEXT_END: AtomicU64 = AtomicU64::new(0);

/// Returns whether an address lies in the text stripe. For the signal handler.
pub(crate) fn text_contains(at: Addr) -> bool {
    (TEXT_START.load(Ordering::Relaxed)..TEXT_END.load(Ordering::Relaxed)).contains(&at.get())
}

/// Returns the access of a stripe's mapping.
fn access(class: Class) -> MappingAccess {
    match class {
        Class::Text => MappingAccess::ReadExecute,
        Class::ReadOnly => MappingAccess::Read,
        Class::Data | Class::RoAfterInit => MappingAccess::ReadWrite,
    }
}

/// Returns the index of the class in the arrays of the arena.
fn stripe_index(class: Class) -> usize {
    match class {
        Class::Text => 0,
        Class::ReadOnly => 1,
        Class::Data => 2,
        Class::RoAfterInit => 3,
    }
}

impl Arena {
    /// Makes this arena the arena of the process, unless there is one.
    pub(crate) fn into_global(self) -> &'static Arena {
        let text = stripe_index(Class::Text);
        TEXT_START.store(self.starts[text].get(), Ordering::Relaxed);
        TEXT_END.store(self.starts[text].get() + self.lens[text], Ordering::Relaxed);
        ARENA.get_or_init(|| self)
    }

    /// Returns the arena, if it has been created.
    pub(crate) fn existing() -> Option<&'static Arena> {
        ARENA.get()
    }

    /// Maps the stripes and faults in the first pages of each. That shows at once whether the kernel permits writing
    /// code.
    pub(crate) fn build(reserved: Reserved, low: bool) -> Result<Arena, ArenaError> {
        let Reserved { start, len } = reserved;
        tracing::debug!(%start, len, low, "arena reserved");
        let mut at = start;
        let mut starts = [Addr::NULL; 4];
        let mut lens = [0; 4];
        for class in Class::ALL {
            let len = len / 64 * class.share() - GAP;
            reserved.map(at, len, access(class)).map_err(|source| ArenaError::Map { class, source })?;
            starts[stripe_index(class)] = at;
            lens[stripe_index(class)] = len;
            at += len + GAP;
        }
        let mut stripes =
            Class::ALL.map(|class| Stripe::new(starts[stripe_index(class)].get(), lens[stripe_index(class)]));
        for class in Class::ALL {
            fault_in(&mut TextLock::take(), class, starts[stripe_index(class)], FAULT_IN_STEP).map_err(|failed| {
                match failed {
                    FaultInFailed::Fill(source) => ArenaError::ForceOverride(source),
                    FaultInFailed::Populate(source) => ArenaError::Map { class, source },
                }
            })?;
            stripes[stripe_index(class)].touched_to(FAULT_IN_STEP);
        }
        Ok(Arena { low, starts, lens, state: Mutex::new(ArenaState { stripes, buffers: Vec::new() }) })
    }

    /// Returns whether the whole arena lies in the low 2 GiB, which the 32-bit relocations of objects compiled without
    /// -fPIC can reach.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.low
    }

    /// Returns the current usage of each stripe.
    #[must_use]
    pub fn usage(&self) -> [StripeUsage; 4] {
        let state = self.lock_state();
        Class::ALL.map(|class| {
            let stripe = &state.stripes[stripe_index(class)];
            StripeUsage {
                class,
                start: self.starts[stripe_index(class)],
                len: self.lens[stripe_index(class)],
                used: stripe.used(),
                touched: stripe.touched(),
                free: stripe.free_ranges(),
            }
        })
    }

    /// Returns the class of the stripe that holds an address, and the number of touched bytes from the address on.
    pub(crate) fn touched_from(&self, at: Addr) -> Option<(Class, u64)> {
        let state = self.lock_state();
        Class::ALL.into_iter().find_map(|class| {
            let offset = at.checked_offset_from(self.starts[stripe_index(class)])?;
            let rest = state.stripes[stripe_index(class)].touched().checked_sub(offset)?;
            (rest != 0).then_some((class, rest))
        })
    }

    /// Waits for the lock of the state. A thread that needs the text lock, too, takes the text lock first.
    pub(crate) fn lock_state(&self) -> MutexGuard<'_, ArenaState> {
        // The state is consistent between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a range. Text reads as INT3; in the other classes, only pages that were never used read as zeros.
    pub(crate) fn take(&'static self, class: Class, len: u64, align: u64) -> Result<Extent, OutOfMemory> {
        let base = self.starts[stripe_index(class)];
        let mut lock = None;
        loop {
            let mut state = self.lock_state();
            let stripe = &mut state.stripes[stripe_index(class)];
            let Some(taken) = stripe.take(len, align, FAULT_IN_STEP) else {
                let used = stripe.used();
                return Err(OutOfMemory::Full { class, len, align, stripe: self.lens[stripe_index(class)], used });
            };
            // The state is still locked, because no other thread may get pages of this step before they are filled.
            if let Some((from, to)) = taken.fault_in {
                let Some(lock) = &mut lock else {
                    // The text lock is taken before the lock of the state, as in publishing and in fork.
                    stripe.give_back(taken.start, len);
                    drop(state);
                    lock = Some(TextLock::take());
                    continue;
                };
                if let Err(failed) = fault_in(lock, class, base + from, to - from) {
                    stripe.give_back(taken.start, len);
                    return Err(match failed {
                        FaultInFailed::Fill(source) => OutOfMemory::Fill { class, source },
                        FaultInFailed::Populate(source) => OutOfMemory::Populate { class, source },
                    });
                }
                stripe.touched_to(to);
            }
            return Ok(Extent { arena: self, class, start: base + taken.start, len });
        }
    }
}

/// New pages could not be faulted in, or not be filled.
enum FaultInFailed {
    Populate(io::Error),
    Fill(WriteFailed),
}

/// Faults pages in: text as INT3, other classes as zeros.
fn fault_in(lock: &mut TextLock<'_>, class: Class, at: Addr, len: u64) -> Result<(), FaultInFailed> {
    let fill = match class {
        Class::Text => INT3,
        Class::ReadOnly => 0,
        Class::Data | Class::RoAfterInit => return reserve::populate(at, len).map_err(FaultInFailed::Populate),
    };
    let filling = vec![fill; index(len.min(FAULT_IN_STEP))];
    let mut done = 0;
    while done < len {
        let part = &filling[..index((len - done).min(FAULT_IN_STEP))];
        lock.write(at + done, part).map_err(FaultInFailed::Fill)?;
        done += wide(part.len());
    }
    Ok(())
}
