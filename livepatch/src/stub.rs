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
use modload_text::{Arena, ArenaError, Describe, INT3, TextLock};
use modload_threads::frames::{BadRows, Known};
use modload_threads::word;

/// The size of a stub in bytes.
const STUB: u64 = 64;
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

    /// Returns the code of the stub:
    ///
    /// ```text
    ///     movabs $self,%r11
    ///     cmpl   $0,%fs:word
    ///     jne    1f
    ///     jmp    *to(%r11)
    /// 1:  subl   $1,%fs:word+4
    ///     jb     2f
    ///     jmp    *from(%r11)
    /// 2:  jmp    *event(%r11)
    /// ```
    ///
    /// or, for [`WordCheck::Tag`]:
    ///
    /// ```text
    ///     movabs $self,%r11
    ///     mov    tag(%r11),%r11
    ///     cmp    %fs:word,%r11
    ///     movabs $self,%r11
    ///     jb     2f
    ///     jne    1f
    ///     jmp    *from(%r11)
    /// 1:  jmp    *event(%r11)
    /// 2:  jmp    *to(%r11)
    /// ```
    fn code(&'static self) -> [u8; 64] {
        // The psABI places static thread-local memory below fs, within 2 GiB.
        let word = i32::try_from(word::offset()).unwrap_or_default();
        let at = |offset: usize| offset.to_le_bytes()[0];
        let load_self = [&[0x49, 0xbb][..], &wide(std::ptr::from_ref(self).expose_provenance()).to_le_bytes()].concat();
        let jump = |offset: usize| [0x41, 0xff, 0x63, at(offset)];
        let mut code = load_self.clone();
        match self.check {
            WordCheck::Half => {
                code.extend([0x64, 0x83, 0x3c, 0x25]);
                code.extend(word.to_le_bytes());
                code.extend([0x00, 0x75, 0x04]);
                code.extend(jump(offset_of!(TwoWayStub, to)));
                code.extend([0x64, 0x83, 0x2c, 0x25]);
                code.extend((word + 4).to_le_bytes());
                code.extend([0x01, 0x72, 0x04]);
                code.extend(jump(offset_of!(TwoWayStub, from)));
                code.extend(jump(offset_of!(TwoWayStub, event)));
            }
            WordCheck::Tag => {
                code.extend([0x4d, 0x8b, 0x5b, at(offset_of!(TwoWayStub, tag))]);
                code.extend([0x64, 0x4c, 0x3b, 0x1c, 0x25]);
                code.extend(word.to_le_bytes());
                code.extend(load_self);
                code.extend([0x72, 0x0a, 0x75, 0x04]);
                code.extend(jump(offset_of!(TwoWayStub, from)));
                code.extend(jump(offset_of!(TwoWayStub, event)));
                code.extend(jump(offset_of!(TwoWayStub, to)));
            }
        }
        let mut stub = [INT3; 64];
        stub[..code.len()].copy_from_slice(&code);
        stub
    }
}

/// Returns the unwind rows for stubs, as call frame instructions. A thread in a stub counts as inside the stub's
/// function, whose return address is on the stack.
fn rows() -> Vec<u8> {
    // *((rip & -64) + 2) + home; the CFA is rsp.
    let rip = [0x80, 0, 0x09, 0xc0, 0x1a, 0x23, 2, 0x06, 0x23, offset_of!(TwoWayStub, home).to_le_bytes()[0]];
    [&[0x0c, 7, 0, 0x10, 16, rip.len().to_le_bytes()[0]][..], &rip].concat()
}

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
        for (number, place) in (0..).zip(staged.bytes_mut().chunks_mut(modload_edit::index(STUB))) {
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
        forget(Known::programmed(text.clone(), &rows())?);
        self.texts.push(text);
        self.free.extend(stubs);
        Ok(())
    }
}
