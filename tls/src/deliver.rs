//! Brings the initial contents of a part of the reserve into every thread.
//!
//! Code with a fixed offset has no check at its accesses, so each thread must have the contents before the code runs,
//! and a thread that is just being made must get them, too. The C library copies the template within `pthread_create`.
//! So:
//!
//! 1. The contents are written to the template. A thread that is made from here on has them.
//! 2. All threads are held. If none is within `pthread_create`, every thread that was made from the older template is
//!    held: the contents are written to each. Otherwise all are released, and held again a moment later.

use std::ffi::{CStr, c_void};
use std::fs::OpenOptions;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use modload_edit::{index, wide};
use modload_threads::frames::{self, Ended, Stack, Walker};
use modload_threads::{Tid, is_alone, name, word};
use thiserror::Error;

use crate::reserve::ReserveSlice;
use crate::x86_64::thread_pointer;

/// The initial contents of thread-local variables cannot be brought into every thread.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotDelivered {
    /// The template is read-only, and `/proc/self/mem` cannot be written.
    #[error("the contents for new threads cannot be written through /proc/self/mem")]
    Template(#[source] io::Error),
    /// Threads cannot be held.
    #[error("threads cannot be held")]
    NotHeld(#[source] Box<modload_threads::Error>),
    /// Stacks cannot be walked.
    #[error("stacks cannot be walked, so threads that are just being made cannot be found")]
    NoFrames(#[source] frames::NoFinder),
    /// `pthread_create` has no call frame information.
    #[error("the C library's pthread_create cannot be recognised on stacks")]
    NoCreate,
    /// A thread sleeps and blocks the signal: its memory must not be written from outside.
    #[error("thread {tid} {name:?} blocks the signal that would stop it, and sleeps")]
    Asleep {
        /// The thread.
        tid: i32,
        /// The thread's name.
        name: String,
    },
    /// For the whole time limit, a thread was within `pthread_create`, or its stack could not be walked.
    #[error("thread {tid} {name:?} makes threads all the time, or its stack cannot be walked")]
    Creating {
        /// The thread.
        tid: i32,
        /// The thread's name.
        name: String,
    },
}

/// How long threads that make threads are waited for.
const LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_micros(200);

/// Writes an image, and zeros behind it, to a slice of every thread.
pub(crate) fn deliver(slice: &ReserveSlice, image: &[u8]) -> Result<(), NotDelivered> {
    let mut contents = image.to_vec();
    contents.resize(slice.len(), 0);
    let template = OpenOptions::new().write(true).open("/proc/self/mem");
    let written = template.and_then(|memory| memory.write_all_at(&contents, slice.template()));
    written.map_err(NotDelivered::Template)?;
    let distance = slice.thread_pointer_offset();
    write(wide(thread_pointer()), distance, &contents);
    if is_alone().unwrap_or(false) {
        return Ok(());
    }
    frames::know_process().map_err(NotDelivered::NoFrames)?;
    let creates = creating_code();
    if creates.is_empty() {
        return Err(NotDelivered::NoCreate);
    }
    let begun = Instant::now();
    let own = Tid::current();
    loop {
        let look = |(found, walker): &mut (LeftOver, Walker), stack: &Stack<'_>| {
            if stack.tid() == own {
                return;
            }
            match stack.word() {
                // The word and the slice are at fixed distances from the thread pointer.
                Some(word) => {
                    let pointer = wide(ptr::from_ref(word).expose_provenance()).wrapping_add_signed(-word::offset());
                    write(pointer, distance, &contents);
                }
                None => found.asleep = found.asleep.or(Some(stack.tid())),
            }
            let mut creating = false;
            let ended = stack.walk_by(walker, |frame| {
                creating |= creates.iter().any(|code| code.contains(&frame.inside()));
                ControlFlow::Continue(())
            });
            if creating || ended != Ok(Ended::Outermost) {
                found.creating = found.creating.or(Some(stack.tid()));
            }
        };
        let held = frames::each_stack(|_| (LeftOver::default(), Walker::new()), look);
        let (found, _) = held.map_err(|error| NotDelivered::NotHeld(Box::new(error)))?;
        let is_late = begun.elapsed() > LIMIT;
        match found {
            LeftOver { asleep: Some(tid), .. } if is_late => {
                return Err(NotDelivered::Asleep { tid: tid.get(), name: name_of(tid) });
            }
            LeftOver { creating: Some(tid), .. } if is_late => {
                return Err(NotDelivered::Creating { tid: tid.get(), name: name_of(tid) });
            }
            LeftOver { asleep: None, creating: None } => return Ok(()),
            LeftOver { .. } => thread::sleep(PAUSE),
        }
    }
}

/// Threads because of which another look is needed.
#[derive(Clone, Copy, Default)]
struct LeftOver {
    asleep: Option<Tid>,
    creating: Option<Tid>,
}

fn name_of(tid: Tid) -> String {
    name(tid).ok().flatten().map(|name| name.to_string()).unwrap_or_default()
}

/// Writes to the slice of the thread with this thread pointer. The thread is this one or held, and no code of the
/// slice's owner has run.
fn write(thread_pointer: u64, distance: i64, contents: &[u8]) {
    let at: *mut u8 = ptr::with_exposed_provenance_mut(index(thread_pointer.wrapping_add_signed(distance)));
    // SAFETY: the slice is part of the thread's static thread-local memory, which exists as long as the thread; it
    // belongs to the caller, and nothing else reads or writes it yet.
    unsafe { at.copy_from_nonoverlapping(contents.as_ptr(), contents.len()) };
}

/// Returns the code of the functions within which threads are made: that of the C library, and one that precedes it in the
/// order of the dynamic linker.
fn creating_code() -> Vec<Range<u64>> {
    const NAME: &CStr = c"pthread_create";
    // SAFETY: the name is a string that ends; nothing is called through the address.
    let first = unsafe { libc::dlsym(libc::RTLD_DEFAULT, NAME.as_ptr()) };
    // SAFETY: as above. The library is not loaded by this call, and its handle is kept as long as the process.
    let library = unsafe { libc::dlopen(c"libc.so.6".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    let own = if library.is_null() {
        #[expect(clippy::as_conversions, reason = "the only way from a function to its address")]
        let linked = libc::pthread_create as *const c_void;
        linked.cast_mut()
    } else {
        // SAFETY: as above.
        unsafe { libc::dlsym(library, NAME.as_ptr()) }
    };
    let found = [first, own].into_iter().filter(|at| !at.is_null());
    found.filter_map(|at| frames::function_at(wide(at.expose_provenance()))).collect()
}
