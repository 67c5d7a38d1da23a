//! Stubs of functions in transition: threads that have not migrated go one way, all other threads the other.
//!
//! A stub is 64 bytes of text that are never freed, with a [`TwoWayStub`] that the text refers to. Both are used again
//! when the transition is complete and no thread is in the stub. A thread's word (`modload_threads::word`) says whether
//! the thread has migrated. In transitions that hold threads, the word's low half is not 0 until the thread has
//! migrated. The word's high half counts down the calls until the thread is checked again. In checkpoint-only
//! transitions no thread could write the word of another, and the word counts only if it has the transition's tag.

use std::mem::{forget, offset_of};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_edit::{Addr, wide};
use modload_ftrace::{StubEvent, event_code};
use modload_text::{Arena, ArenaError, Describe, TextLock};
use modload_threads::frames::{BadRows, Known};

use crate::x86_64::{STUB_LEN, StubOffsets, half_code, rows, tag_code};

/// The size of a stub in bytes.
const STUB: u64 = wide(STUB_LEN);
/// The number of stubs that are made at a time.
const BLOCK: u64 = 64;

/// The targets of a stub. The stub's code reads them.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct TwoWayStub {
    /// The `home` of a [`StubEvent`], for [`modload_ftrace::event_code`]. This field comes first, because a pointer to
    /// the event is a pointer to this struct. The event's `then` is the stub.
    home: AtomicU64,
    then: AtomicU64,
    /// The target for threads that have migrated.
    to: AtomicU64,
    /// The target for threads that have not migrated.
    from: AtomicU64,
    /// The address of the event code.
    event: AtomicU64,
    /// The word of threads that have not migrated, for [`WordCheck::Tag`]. The word of threads that have migrated is
    /// greater.
    tag: AtomicU64,
    check: WordCheck,
}

/// The part of a thread's word that a stub compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WordCheck {
    /// The low half of the word.
    Half,
    /// Whether the word has a tag, and which of two tags.
    Tag,
}

const _: () = assert!(offset_of!(TwoWayStub, home) == offset_of!(StubEvent, home));
const _: () = assert!(offset_of!(TwoWayStub, then) == offset_of!(StubEvent, then));

impl TwoWayStub {
    /// Sets the targets for threads that have migrated (`to`) and that have not (`from`). `home` is an address behind
    /// the function's site.
    pub(crate) fn set_targets(&self, home: Addr, to: Addr, from: Addr) {
        self.home.store(home.get(), Ordering::Relaxed);
        self.to.store(to.get(), Ordering::Relaxed);
        self.from.store(from.get(), Ordering::Release);
    }

    /// Sets the tag of the words that count.
    pub(crate) fn set_tag(&self, tag: u64) {
        self.tag.store(tag, Ordering::Release);
    }

    /// Sends all threads one way from now on. A thread that is inside the stub and has read some of the fields reaches
    /// that target, too, or the thread's former target.
    pub(crate) fn settle_on(&self, home: Addr, to: Addr) {
        self.set_targets(home, to, to);
        // With `WordCheck::Tag`, any word is greater than or equal to 0, so the stub does not call the event code any
        // more.
        self.set_tag(0);
    }

    /// Exchanges the two targets. May be called while threads are held.
    pub(crate) fn reverse(&self) {
        let to = self.to.load(Ordering::Relaxed);
        self.to.store(self.from.swap(to, Ordering::Relaxed), Ordering::Release);
    }

    /// Returns the stub's address.
    pub(crate) fn addr(&self) -> Addr {
        Addr::new(self.then.load(Ordering::Relaxed))
    }

    /// Returns the code of the stub.
    fn code(&'static self) -> [u8; STUB_LEN] {
        let data = wide(std::ptr::from_ref(self).expose_provenance());
        match self.check {
            WordCheck::Half => half_code(data, &OFFSETS),
            WordCheck::Tag => tag_code(data, &OFFSETS),
        }
    }
}

/// The offsets of the fields that the code reads.
const OFFSETS: StubOffsets = StubOffsets {
    home: offset_of!(TwoWayStub, home),
    to: offset_of!(TwoWayStub, to),
    from: offset_of!(TwoWayStub, from),
    event: offset_of!(TwoWayStub, event),
    tag: offset_of!(TwoWayStub, tag),
};

/// The name of stubs in descriptions.
struct TwoWayStubName;

impl Describe for TwoWayStubName {
    fn module(&self) -> &'static str {
        "live patching"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

/// The unused stubs, and the addresses of all stubs.
#[derive(Debug)]
pub(crate) struct TwoWayStubs {
    free: Vec<&'static TwoWayStub>,
    /// No site leads to these stubs any more, but threads may still be inside.
    retired: Vec<&'static TwoWayStub>,
    /// The texts that hold only stubs.
    texts: Vec<Range<u64>>,
}

/// No stubs could be allocated.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// The arena does not exist, or has no room.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Unwind rows for stubs could not be registered.
    #[error(transparent)]
    Rows(#[from] BadRows),
}

impl TwoWayStubs {
    pub(crate) const fn new() -> TwoWayStubs {
        TwoWayStubs { free: Vec::new(), retired: Vec::new(), texts: Vec::new() }
    }

    /// Returns `count` stubs, whose targets must still be set.
    pub(crate) fn take(&mut self, count: usize, check: WordCheck) -> Result<Vec<&'static TwoWayStub>, StubError> {
        let there = self.free.iter().filter(|stub| stub.check == check).count();
        if there < count {
            self.make(wide(count - there).next_multiple_of(BLOCK), check)?;
        }
        let mut wanted = count;
        let taken = self.free.extract_if(.., |stub| {
            let is_taken = wanted != 0 && stub.check == check;
            wanted -= usize::from(is_taken);
            is_taken
        });
        Ok(taken.collect())
    }

    /// Returns the ranges of all stubs and of the event code, which returns to stubs. Sorted.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let mut texts = self.texts.clone();
        texts.push(event_code().1);
        texts.sort_by_key(|range| range.start);
        texts
    }

    /// Gives back stubs to which no site leads.
    pub(crate) fn retire(&mut self, stubs: impl Iterator<Item = &'static TwoWayStub>) {
        self.retired.extend(stubs);
    }

    /// Returns the number of stubs that are not used but cannot be used again yet.
    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Makes the `count` stubs that were retired first usable again. No thread is in these stubs.
    pub(crate) fn recover_oldest(&mut self, count: usize) {
        let count = count.min(self.retired.len());
        self.free.extend(self.retired.drain(..count));
    }

    /// Makes all retired stubs usable again: no thread was in any stub.
    pub(crate) fn recover(&mut self) {
        self.free.append(&mut self.retired);
    }

    fn make(&mut self, count: u64, check: WordCheck) -> Result<(), StubError> {
        let mut staged = Arena::get()?.stage_text(count * STUB, STUB).map_err(ArenaError::from)?;
        let start = staged.addr();
        let (event, _) = event_code();
        let mut stubs: Vec<&'static TwoWayStub> = Vec::new();
        for (number, place) in (0..).zip(staged.bytes_mut().chunks_mut(STUB_LEN)) {
            let stub: &'static TwoWayStub = Box::leak(Box::new(TwoWayStub {
                home: AtomicU64::new(0),
                then: AtomicU64::new((start + number * STUB).get()),
                to: AtomicU64::new(0),
                from: AtomicU64::new(0),
                event: AtomicU64::new(event.get()),
                tag: AtomicU64::new(0),
                check,
            }));
            place.copy_from_slice(&stub.code());
            stubs.push(stub);
        }
        staged.set_owner(Arc::new(TwoWayStubName));
        forget(staged.publish(&mut TextLock::take()).map_err(ArenaError::from)?);
        let text = start.get()..start.get() + count * STUB;
        forget(Known::programmed(text.clone(), &rows(&OFFSETS))?);
        self.texts.push(text);
        self.free.extend(stubs);
        Ok(())
    }
}
