//! What is waited for while a transition is under way: somebody has gone over, a thread that was in the way has ended, or time has
//! passed.
//!
//! Who goes over may be in a signal handler, and so it writes to an eventfd. The ends of threads are seen by their pidfds, which
//! Linux has for threads since 6.9; before that, and of more threads than [`WATCHED`], time tells.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use modload_threads::Tid;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::Blocked;

/// An eventfd, and whose: after a fork, the parent's is not the child's to write to. They stay for good, because a signal handler
/// may be about to write.
#[derive(Debug)]
struct Event {
    process: Pid,
    fd: OwnedFd,
    next: OnceLock<Box<Event>>,
}

/// That of the first process of this line that has had a transition.
static FIRST: OnceLock<Box<Event>> = OnceLock::new();

/// `PIDFD_THREAD` of `<linux/pidfd.h>`.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);

/// At most so many threads are watched: each takes a descriptor.
const WATCHED: usize = 64;

/// Somebody has gone over. Async-signal-safe.
pub(super) fn tell() {
    if let Some(event) = find(getpid()) {
        // Full, it has been told often enough.
        let _told = write(&event.fd, &1_u64.to_ne_bytes());
    }
}

fn find(process: Pid) -> Option<&'static Event> {
    let mut event = FIRST.get();
    while let Some(here) = event.filter(|event| event.process != process) {
        event = here.next.get();
    }
    event.map(Box::as_ref)
}

/// This process's eventfd. Only the one thread asks that waits.
fn own() -> Result<&'static Event, Errno> {
    let process = getpid();
    if let Some(event) = find(process) {
        return Ok(event);
    }
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let mut place = &FIRST;
    while let Some(event) = place.get() {
        place = &event.next;
    }
    Ok(place.get_or_init(|| Box::new(Event { process, fd, next: OnceLock::new() })))
}

/// What one thread waits for.
#[derive(Debug)]
pub(super) struct Waiter {
    event: Option<&'static Event>,
    /// Threads that are in the way; `None`: it has ended, and was told of.
    ends: Vec<(Tid, Option<OwnedFd>)>,
}

impl Waiter {
    pub(super) fn new() -> Waiter {
        let event = own().inspect_err(|error| tracing::warn!(%error, "transitions are looked at by the clock alone"));
        Waiter { event: event.ok(), ends: Vec::new() }
    }

    /// Watches these threads, and no others any more.
    pub(super) fn watch(&mut self, blocked: &[Blocked]) {
        self.ends.retain(|(tid, _)| blocked.iter().any(|blocked| blocked.tid == *tid));
        for Blocked { tid, .. } in blocked {
            if self.ends.len() == WATCHED {
                return;
            }
            let is_known = self.ends.iter().any(|(known, _)| known == tid);
            let Some(pid) = Pid::from_raw(tid.get()).filter(|_| !is_known) else { continue };
            match pidfd_open(pid, THREAD) {
                Ok(end) => self.ends.push((*tid, Some(end))),
                // It has ended just now, and time will tell; nobody else is different where threads have none.
                Err(Errno::SRCH) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits; says whether anything has happened but that so much time has passed.
    pub(super) fn wait(&mut self, at_most: Duration) -> bool {
        let event = self.event.map(|event| event.fd.as_fd());
        let ends = self.ends.iter().filter_map(|(_, end)| end.as_ref().map(OwnedFd::as_fd));
        let mut polled: Vec<_> =
            event.into_iter().chain(ends).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout =
            Timespec { tv_sec: at_most.as_secs().try_into().unwrap_or(1), tv_nsec: at_most.subsec_nanos().into() };
        let ready = loop {
            match poll(&mut polled, Some(&timeout)) {
                // It is held now and then, by a signal.
                Err(Errno::INTR) => {}
                done => break done.unwrap_or(0),
            }
        };
        let has_ended: Vec<_> =
            polled.iter().skip(usize::from(self.event.is_some())).map(|end| !end.revents().is_empty()).collect();
        let watched = self.ends.iter_mut().filter(|(_, end)| end.is_some());
        watched.zip(has_ended).filter(|(_, has_ended)| *has_ended).for_each(|((_, end), _)| *end = None);
        if let Some(event) = self.event {
            // Where nothing was told there is nothing to read.
            let _told = read(&event.fd, &mut [0; 8]);
        }
        ready != 0
    }
}
