//! Stubs of functions that are in transition: threads that have not made it go one way, all others the other.
//!
//! A stub is 64 bytes of text that stay, with a [`Fork`] that it refers to; both are used again when the transition is over and no
//! thread is in the stub. A thread's word (`modload_threads::word`) says where it belongs. Where threads are held, its low half is not
//! 0 as long as it has not made the transition, and its high half counts the calls until it is asked whether it could. Where threads
//! go over at checkpoints alone, nobody could write that for others, and the word counts only if it has the transition's tag.

use std::mem::{forget, offset_of};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use modload_edit::{Addr, wide};
use modload_ftrace::{Event, event_code};
use modload_text::{Arena, ArenaError, Describe, INT3, TextLock};
use modload_threads::frames::{BadRows, Known};
use modload_threads::word;

/// Bytes of a stub.
const STUB: u64 = 64;
/// How many are made at a time.
const BLOCK: u64 = 64;

/// Where a stub leads. Read by its code.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Fork {
    /// Of [`modload_ftrace::event_code`]: first, for the pointer to it is one to this. Its `then` is the stub.
    home: AtomicU64,
    then: AtomicU64,
    /// Threads that have made the transition.
    to: AtomicU64,
    /// Threads that have not.
    from: AtomicU64,
    /// The code of an event.
    event: AtomicU64,
    /// The word of threads that have not made the transition, for [`Asks::Tag`]; that of those that have is greater.
    tag: AtomicU64,
    asks: Asks,
}

/// By what a stub tells threads apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    /// The low half of their words.
    Half,
    /// Whether their words have a tag, and which of two.
    Tag,
}

const _: () = assert!(offset_of!(Fork, home) == offset_of!(Event, home));
const _: () = assert!(offset_of!(Fork, then) == offset_of!(Event, then));

impl Fork {
    /// Where threads go that have made the transition, and those that have not. `home` is an address behind the function's site.
    pub(crate) fn leads(&self, home: Addr, to: Addr, from: Addr) {
        self.home.store(home.get(), Ordering::Relaxed);
        self.to.store(to.get(), Ordering::Relaxed);
        self.from.store(from.get(), Ordering::Release);
    }

    /// The tag of the words that count.
    pub(crate) fn is_of(&self, tag: u64) {
        self.tag.store(tag, Ordering::Release);
    }

    /// Everybody goes one way from now on. Whoever is in the stub and has read some of it comes out there, too, or where it
    /// belonged.
    pub(crate) fn settles(&self, home: Addr, to: Addr) {
        self.leads(home, to, to);
        // Any word is greater than this, or equal: nobody is asked any more.
        self.is_of(0);
    }

    /// The two ways change places. May be called while threads are held.
    pub(crate) fn reverse(&self) {
        let to = self.to.load(Ordering::Relaxed);
        self.to.store(self.from.swap(to, Ordering::Relaxed), Ordering::Release);
    }

    /// Its stub.
    pub(crate) fn stub(&self) -> Addr {
        Addr::new(self.then.load(Ordering::Relaxed))
    }

    /// The code of its stub:
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
    /// or, for [`Asks::Tag`]:
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
        // The psABI has static thread-local memory below 2 GiB from where fs points.
        let word = i32::try_from(word::offset()).unwrap_or_default();
        let at = |offset: usize| offset.to_le_bytes()[0];
        let fork = [&[0x49, 0xbb][..], &wide(std::ptr::from_ref(self).expose_provenance()).to_le_bytes()].concat();
        let jump = |offset: usize| [0x41, 0xff, 0x63, at(offset)];
        let mut code = fork.clone();
        match self.asks {
            Asks::Half => {
                code.extend([0x64, 0x83, 0x3c, 0x25]);
                code.extend(word.to_le_bytes());
                code.extend([0x00, 0x75, 0x04]);
                code.extend(jump(offset_of!(Fork, to)));
                code.extend([0x64, 0x83, 0x2c, 0x25]);
                code.extend((word + 4).to_le_bytes());
                code.extend([0x01, 0x72, 0x04]);
                code.extend(jump(offset_of!(Fork, from)));
                code.extend(jump(offset_of!(Fork, event)));
            }
            Asks::Tag => {
                code.extend([0x4d, 0x8b, 0x5b, at(offset_of!(Fork, tag))]);
                code.extend([0x64, 0x4c, 0x3b, 0x1c, 0x25]);
                code.extend(word.to_le_bytes());
                code.extend(fork);
                code.extend([0x72, 0x0a, 0x75, 0x04]);
                code.extend(jump(offset_of!(Fork, from)));
                code.extend(jump(offset_of!(Fork, event)));
                code.extend(jump(offset_of!(Fork, to)));
            }
        }
        let mut stub = [INT3; 64];
        stub[..code.len()].copy_from_slice(&code);
        stub
    }
}

/// Rows for stubs, as call frame instructions: whoever is in one is in the function that it is for, whose return address is on
/// the stack.
fn rows() -> Vec<u8> {
    // *((rip & -64) + 2) + home; the CFA is rsp.
    let rip = [0x80, 0, 0x09, 0xc0, 0x1a, 0x23, 2, 0x06, 0x23, offset_of!(Fork, home).to_le_bytes()[0]];
    [&[0x0c, 7, 0, 0x10, 16, rip.len().to_le_bytes()[0]][..], &rip].concat()
}

/// Names them.
struct Name;

impl Describe for Name {
    fn module(&self) -> &'static str {
        "live patching"
    }

    fn symbol(&self, _: Addr) -> Option<(&[u8], u64)> {
        None
    }
}

/// Stubs that nobody uses, and where all are.
#[derive(Debug)]
pub(crate) struct Stubs {
    free: Vec<&'static Fork>,
    /// No site leads to them any more, but threads may be in them.
    retired: Vec<&'static Fork>,
    /// Texts with nothing but stubs.
    texts: Vec<Range<u64>>,
}

/// No stubs can be had.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// There is no arena, or no room in it.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// Rows for them could not be made known.
    #[error(transparent)]
    Rows(#[from] BadRows),
}

impl Stubs {
    pub(crate) const fn new() -> Stubs {
        Stubs { free: Vec::new(), retired: Vec::new(), texts: Vec::new() }
    }

    /// So many stubs, which lead nowhere yet.
    pub(crate) fn take(&mut self, count: usize, asks: Asks) -> Result<Vec<&'static Fork>, StubError> {
        let there = self.free.iter().filter(|fork| fork.asks == asks).count();
        if there < count {
            self.make(wide(count - there).next_multiple_of(BLOCK), asks)?;
        }
        let mut wanted = count;
        let taken = self.free.extract_if(.., |fork| {
            let is_taken = wanted != 0 && fork.asks == asks;
            wanted -= usize::from(is_taken);
            is_taken
        });
        Ok(taken.collect())
    }

    /// Where a thread is in a stub, or on a way that leads back to one; sorted.
    pub(crate) fn sight(&self) -> Vec<Range<u64>> {
        let mut texts = self.texts.clone();
        texts.push(event_code().1);
        texts.sort_by_key(|range| range.start);
        texts
    }

    /// Gives stubs back that no site leads to.
    pub(crate) fn retire(&mut self, forks: impl Iterator<Item = &'static Fork>) {
        self.retired.extend(forks);
    }

    /// How many are not used and cannot be used again yet.
    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }

    /// Nobody is in those that were retired first.
    pub(crate) fn recover_oldest(&mut self, count: usize) {
        let count = count.min(self.retired.len());
        self.free.extend(self.retired.drain(..count));
    }

    /// Nobody was in any stub: those that no site led to can be used again.
    pub(crate) fn recover(&mut self) {
        self.free.append(&mut self.retired);
    }

    fn make(&mut self, count: u64, asks: Asks) -> Result<(), StubError> {
        let mut staged = Arena::get()?.stage_text(count * STUB, STUB).map_err(ArenaError::from)?;
        let start = staged.addr();
        let (event, _) = event_code();
        let mut forks: Vec<&'static Fork> = Vec::new();
        for (number, place) in (0..).zip(staged.bytes_mut().chunks_mut(modload_edit::index(STUB))) {
            let fork: &'static Fork = Box::leak(Box::new(Fork {
                home: AtomicU64::new(0),
                then: AtomicU64::new((start + number * STUB).get()),
                to: AtomicU64::new(0),
                from: AtomicU64::new(0),
                event: AtomicU64::new(event.get()),
                tag: AtomicU64::new(0),
                asks,
            }));
            place.copy_from_slice(&fork.code());
            forks.push(fork);
        }
        staged.owner(Arc::new(Name));
        forget(staged.publish(&mut TextLock::take()).map_err(ArenaError::from)?);
        let text = start.get()..start.get() + count * STUB;
        forget(Known::programmed(text.clone(), &rows())?);
        self.texts.push(text);
        self.free.extend(forks);
        Ok(())
    }
}
