//! The events that the worker waits for during a transition: a thread has migrated, a blocking thread has ended, or a
//! timeout.
//!
//! A thread that migrates may be in a signal handler, so it writes to an eventfd. The ends of threads are seen by
//! pidfds, which Linux has for threads since 6.9. Before 6.9, and for more threads than [`MOST_WATCHED`], the timeout
//! is used.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use modload_threads::Tid;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::blocked::Blocked;

/// An eventfd and its process. After a fork, the child must not write to the parent's eventfd. Events are never freed,
/// because a signal handler may be about to write.
#[derive(Debug)]
struct MigrationEvent {
    process: Pid,
    fd: OwnedFd,
    next: OnceLock<Box<MigrationEvent>>,
}

/// The eventfd of the first process that has had a transition. The eventfds of forked children follow in `next`.
static FIRST: OnceLock<Box<MigrationEvent>> = OnceLock::new();

/// `PIDFD_THREAD` of `<linux/pidfd.h>`.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);

/// The most threads that are watched: each takes a descriptor.
const MOST_WATCHED: usize = 64;

/// Reports that a thread has migrated. Async-signal-safe.
pub(super) fn report_migration() {
    if let Some(event) = event_of(getpid()) {
        // The write fails if the counter is full. The eventfd is readable then.
        let _result = write(&event.fd, &1_u64.to_ne_bytes());
    }
}

fn event_of(process: Pid) -> Option<&'static MigrationEvent> {
    let mut event = FIRST.get();
    while let Some(here) = event.filter(|event| event.process != process) {
        event = here.next.get();
    }
    event.map(Box::as_ref)
}

/// Returns this process's eventfd. Only the thread that waits calls this.
fn event_of_this_process() -> Result<&'static MigrationEvent, Errno> {
    let process = getpid();
    if let Some(event) = event_of(process) {
        return Ok(event);
    }
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let mut place = &FIRST;
    while let Some(event) = place.get() {
        place = &event.next;
    }
    Ok(place.get_or_init(|| Box::new(MigrationEvent { process, fd, next: OnceLock::new() })))
}

/// The events that one thread waits for.
#[derive(Debug)]
pub(crate) struct Waiter {
    event: Option<&'static MigrationEvent>,
    /// The blocking threads. The descriptor is `None` after the end of the thread was reported.
    ends: Vec<(Tid, Option<OwnedFd>)>,
}

impl Waiter {
    pub(crate) fn new() -> Waiter {
        let event = event_of_this_process()
            .inspect_err(|error| tracing::warn!(%error, "there is no eventfd for transitions: the worker thread checks them only periodically"));
        Waiter { event: event.ok(), ends: Vec::new() }
    }

    /// Watches these threads, and no other thread any more.
    pub(crate) fn watch(&mut self, blocked: &[Blocked]) {
        self.ends.retain(|(tid, _)| blocked.iter().any(|blocked| blocked.tid == *tid));
        for Blocked { tid, .. } in blocked {
            if self.ends.len() == MOST_WATCHED {
                return;
            }
            let is_known = self.ends.iter().any(|(known, _)| known == tid);
            let Some(pid) = Pid::from_raw(tid.get()).filter(|_| !is_known) else { continue };
            match pidfd_open(pid, THREAD) {
                Ok(end) => self.ends.push((*tid, Some(end))),
                // The thread has just ended: a later check notices that. If threads have no pidfds, all further threads
                // fail in the same way.
                Err(Errno::SRCH) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits. Returns whether anything happened before the timeout.
    pub(crate) fn wait(&mut self, at_most: Duration) -> bool {
        let event = self.event.map(|event| event.fd.as_fd());
        let ends = self.ends.iter().filter_map(|(_, end)| end.as_ref().map(OwnedFd::as_fd));
        let mut polled: Vec<_> =
            event.into_iter().chain(ends).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout =
            Timespec { tv_sec: at_most.as_secs().try_into().unwrap_or(1), tv_nsec: at_most.subsec_nanos().into() };
        let ready = loop {
            match poll(&mut polled, Some(&timeout)) {
                // A signal holds this thread now and then.
                Err(Errno::INTR) => {}
                done => break done.unwrap_or(0),
            }
        };
        let has_ended: Vec<_> =
            polled.iter().skip(usize::from(self.event.is_some())).map(|end| !end.revents().is_empty()).collect();
        let watched = self.ends.iter_mut().filter(|(_, end)| end.is_some());
        watched.zip(has_ended).filter(|(_, has_ended)| *has_ended).for_each(|((_, end), _)| *end = None);
        if let Some(event) = self.event {
            // There is nothing to read if no thread has written.
            let _result = read(&event.fd, &mut [0; 8]);
        }
        ready != 0
    }
}
